"""From two folders and the options to a judged report: what `verification.compare` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from model_store.progress import Progress
from model_store.records import RecordSet, hardware, versions
from verification.folders import Subject, check_comparable, read_subject
from verification.gate import judge, summarize
from verification.options import CompareOptions
from verification.profile import Profile, load_profile
from verification.report import ParityReport
from verification.running import gather

_PACKAGES = ("modelferry", "torch", "transformers", "numpy", "pillow", "tiktoken")


def compare(
    reference: Path, candidate: Path, options: CompareOptions, *, progress: Progress
) -> ParityReport:
    """Compare two snapshot folders under the options' claim and profile; writes nothing.

    Raises:
        ProfileError: the profile cannot be used.
        NotComparableError: other architectures, or vocabularies that do not match.
        NotASnapshotError: a folder without a manifest.
        ToolkitError: weights or configuration that cannot be read.
    """
    started = time.monotonic()
    profile = load_profile(options.profile, options.claim)
    subjects = (
        read_subject(reference, named=options.reference),
        read_subject(candidate, named=options.candidate),
    )
    check_comparable(*subjects)
    samples = options.samples or profile.probes.samples
    evidence = gather(*subjects, profile, samples=samples, seed=options.seed, progress=progress)
    rows = judge(
        profile,
        evidence.findings,
        probes_run=len(evidence.results),
        seconds=evidence.seconds,
    )
    record = RecordSet(
        name=f"parity-{options.claim}",
        reference=subjects[0].side.content_digest,
        candidate=subjects[1].side.content_digest,
        command=_command(options, subjects, profile),
        seed=options.seed,
        measurements=tuple(row.measurement for row in rows),
        claim=options.claim,
        hardware=hardware(),
        versions=versions(_PACKAGES),
        profile={"name": profile.name, "digest": profile.digest, "limits": dict(profile.table)},
    )
    return ParityReport(
        record=record,
        profile=profile,
        reference=subjects[0].side,
        candidate=subjects[1].side,
        rows=rows,
        results=evidence.results,
        weights=evidence.weights,
        summary=summarize(record.verdict, rows, options.claim),
        seconds=time.monotonic() - started,
    )


def _command(
    options: CompareOptions, subjects: Sequence[Subject], profile: Profile
) -> tuple[str, ...]:
    """The command without machine paths; a profile of one's own by its name."""
    named = options.profile if options.profile.isidentifier() else Path(options.profile).name
    command = ["python", "-m", "verification.compare"]
    command += [subject.side.label for subject in subjects]
    command += ["--claim", options.claim, "--profile", named, "--seed", str(options.seed)]
    if options.samples is not None:
        command += ["--samples", str(options.samples)]
    return tuple(command)

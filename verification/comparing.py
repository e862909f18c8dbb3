"""From two folders and the options to a judged report: what `verification.compare` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from model_store.progress import Progress
from model_store.records import RecordSet, hardware, versions
from verification.answers import Place
from verification.baseline import Baseline, read_baseline, regressions
from verification.evidence import Evidence, Finding
from verification.folders import Subject, check_comparable, read_subject
from verification.gate import Judged, judge, summarize
from verification.options import CompareOptions
from verification.profile import Profile, load_profile
from verification.report import ParityReport
from verification.running import Job, gather
from verification.world import World

_BATCH = 16  # the default, which a command need not say
_PACKAGES = ("modelferry", "torch", "transformers", "numpy", "pillow", "tiktoken")


def compare(
    reference: Path,
    candidate: Path,
    options: CompareOptions,
    *,
    work: Path,
    progress: Progress,
    world: World | None = None,
) -> ParityReport | None:
    """Compare two snapshot folders under the options' claim and profile.

    Writes what is done so far into `work` and nothing else.

    Returns:
        The report; None in a process of `world` that is not the first.

    Raises:
        ProfileError: the profile cannot be used.
        NotComparableError: other architectures, or vocabularies that do not match.
        NotASnapshotError: a folder without a manifest.
        BaselineError: the blessed report cannot be used.
        ToolkitError: weights or configuration that cannot be read.
    """
    started = time.monotonic()
    world = world or World()
    profile = load_profile(options.profile, options.claim)
    blessed = None if options.baseline is None else read_baseline(options.baseline, options.claim)
    subjects = (
        read_subject(reference, named=options.reference),
        read_subject(candidate, named=options.candidate),
    )
    check_comparable(*subjects)
    job = Job(
        samples=options.samples or profile.probes.samples,
        seed=options.seed,
        batch_size=options.batch_size,
        place=Place(options.dtype, world.device(options.device)),
        work=work,
        world=world,
        only=options.only,
    )
    evidence = gather(*subjects, profile, job, progress=progress)
    if evidence is None:
        return None
    rows = _judged(profile, evidence, blessed)
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
        evidence=evidence,
        summary=summarize(record.verdict, rows, options.claim),
        baseline=blessed,
        seconds=time.monotonic() - started,
    )


def _judged(profile: Profile, evidence: Evidence, blessed: Baseline | None) -> tuple[Judged, ...]:
    """Judge everything, then count what got worse than the blessed report."""
    absent = Finding(None, note="no blessed report was named", applies=False)
    findings = {"regressions": absent, **evidence.findings}
    probes = len(evidence.results)
    rows = judge(profile, findings, probes_run=probes, seconds=evidence.seconds)
    if blessed is None:
        return rows
    findings["regressions"] = regressions(rows, blessed)
    return judge(profile, findings, probes_run=probes, seconds=evidence.seconds)


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
    if options.only is not None:
        command += ["--only", options.only]
    if options.batch_size != _BATCH:
        command += ["--batch-size", str(options.batch_size)]
    if (options.dtype, options.device) != ("float32", "cpu"):
        command += ["--dtype", options.dtype, "--device", options.device]
    return tuple(command)

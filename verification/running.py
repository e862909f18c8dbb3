"""Run a comparison: tensors, settings, both passes, traces, the witness; judge nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model_store.progress import NoProgress, Progress
from verification.answers import Place
from verification.batches import plan_batches
from verification.errors import NoSuchProbeError
from verification.evidence import Evidence, Finding, LayerError, ProbeResult, TaskResult
from verification.findings import converted_findings, curve_findings, quantized_findings
from verification.folders import Subject
from verification.grading import grade
from verification.input_findings import input_findings
from verification.journal import Stage
from verification.measures import BY_CLAIM
from verification.passes import (
    Heard,
    Plan,
    Reply,
    read_replies,
    read_scores,
    run_candidate,
    run_reference,
    yardsticks,
)
from verification.probes import Probe, make_probes
from verification.profile import Profile
from verification.rounding import rounding_plan
from verification.settings import settings_finding
from verification.task_findings import task_findings
from verification.tensors import compare_converted, compare_quantized
from verification.tracing import at_fault, layer_errors, tensors_inside
from verification.witness_findings import witness_findings
from verification.world import World

_WORTH_THREADS = 1024  # hidden size


@dataclass(frozen=True, slots=True)
class Job:
    """How a comparison is run: how much, where, and by whom."""

    samples: int
    seed: int
    batch_size: int
    place: Place
    work: Path
    world: World
    only: str | None = None  # the key of the one probe to run


class _Clock:
    """Seconds per stage, told to every measurement that comes from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, *names: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        spent = time.monotonic() - started
        for name in names:
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def gather(
    reference: Subject, candidate: Subject, profile: Profile, job: Job, *, progress: Progress
) -> Evidence | None:
    """Measure everything that the profile's claim asks for.

    Returns:
        The evidence; None in a process that is not the first.

    Raises:
        NotComparableError: the two vocabularies do not match.
        ToolkitError: a snapshot that cannot be read or loaded.
    """
    with _threads_for(reference):
        return _gather(reference, candidate, profile, job, progress)


@contextmanager
def _threads_for(subject: Subject) -> Iterator[None]:
    """Run a small model on one thread: many threads cost it more than they bring."""
    before = torch.get_num_threads()
    if subject.architecture.hidden_size < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class _Level:
    """What the tensor level found."""

    findings: Mapping[str, Finding]
    evidence: Evidence
    differing: Sequence[str] = ()  # tensor names, converted claims only


def _gather(
    reference: Subject, candidate: Subject, profile: Profile, job: Job, progress: Progress
) -> Evidence | None:
    clock, claim = _Clock(), profile.claim
    shown = progress if job.world.first else NoProgress()
    level = _tensor_level(reference, candidate, claim, clock, shown)
    missing = level.findings["tensors_unpaired"]
    if missing.value:
        # every process has found the same, so none waits for another
        reason = f"not run: tensors are missing or extra ({missing.note})"
        rest = [m.name for m in BY_CLAIM[claim] if m.name not in level.findings]
        absent = {name: Finding(None, note=reason) for name in rest}
        found = replace(level.evidence, findings={**level.findings, **absent})
        return replace(found, seconds=clock.seconds) if job.world.first else None
    plan = _plan(profile, job)
    sampled = [m.name for m in BY_CLAIM[claim] if m.from_probes or "token" in m.name]
    with clock.stage(*sampled, "modules_at_fault"):
        answered = _ask_both(reference, candidate, plan, profile, job, shown)
    if answered is None:
        return None
    return _conclude(reference, candidate, profile, plan, level, answered, clock)


def _plan(profile: Profile, job: Job) -> Plan:
    probes = make_probes(job.seed, job.samples)
    if job.only is not None:
        probes = [probe for probe in probes if probe.key == job.only]
        if not probes:
            raise NoSuchProbeError(job.only, job.samples)
    return Plan(
        probes=probes,
        batches=plan_batches(probes, job.batch_size),
        new_tokens=profile.probes.new_tokens,
        traced=_traced(probes, profile.probes.witness),
        seed=job.seed,
        place=job.place,
        threads=torch.get_num_threads(),
    )


def _traced(probes: Sequence[Probe], each: int) -> list[int]:
    """Pick `each` probes with images and as many without."""
    shown = [i for i, probe in enumerate(probes) if probe.images]
    spoken = [i for i, probe in enumerate(probes) if not probe.images]
    return [*shown[:each], *spoken[:each]]


@dataclass(frozen=True, slots=True)
class _Answered:
    """What both passes left, gathered by the first process."""

    replies: tuple[Mapping[int, Reply], Mapping[int, Reply]]
    heard: tuple[Heard, Heard]
    evidence: Evidence


def _ask_both(
    reference: Subject,
    candidate: Subject,
    plan: Plan,
    profile: Profile,
    job: Job,
    progress: Progress,
) -> _Answered | None:
    key = plan.key(reference)
    ours = Stage(job.work, "reference", key)
    other = {"candidate": candidate.side.content_digest}
    theirs = Stage(job.work, "candidate", {**key, **other})
    beside = []
    if profile.claim == "quantized":
        rounding = rounding_plan(candidate)
        beside = yardsticks(job.work, reference, plan, rounding, profile.probes.yardstick)
    first = run_reference(reference, plan, ours, job.world, progress, yardsticks=beside)
    second = run_candidate(candidate, reference, plan, (ours, theirs), job.world, progress, first)
    job.world.wait()
    if first is None or second is None:
        return None
    replies = read_replies(ours, plan), read_replies(theirs, plan)
    scores = read_scores(theirs, plan)
    results = tuple(
        ProbeResult(
            probe=probe,
            reference=replies[0][i].answer,
            candidate=replies[1][i].answer,
            scores=scores[i],
            reference_box=replies[0][i].box,
            candidate_box=replies[1][i].box,
            reference_right=grade(probe, replies[0][i].answer.text),
            candidate_right=grade(probe, replies[1][i].answer.text),
        )
        for i, probe in enumerate(plan.probes)
    )
    curves = tuple(yardstick.curve(plan) for yardstick in beside)
    pairs = list(zip(second.traces, second.fed, strict=True))
    layers = tuple(layer_errors(first.traces, pairs))
    evidence = Evidence({}, results=results, curves=curves, layers=layers)
    return _Answered(replies, (first, second), evidence)


def _conclude(
    reference: Subject,
    candidate: Subject,
    profile: Profile,
    plan: Plan,
    level: _Level,
    answered: _Answered,
    clock: _Clock,
) -> Evidence:
    found = answered.evidence
    findings = dict(level.findings)
    findings |= input_findings(reference, candidate, plan, answered.replies, answered.heard)
    tasks: list[TaskResult] = []
    with clock.stage("statistics"):
        if profile.claim == "converted":
            findings |= converted_findings(found.results, dtype=plan.place.dtype)
            findings["modules_at_fault"] = _faults(found.layers, plan.place.dtype)
        else:
            findings |= quantized_findings(found.results, seed=plan.seed)
            findings |= curve_findings(found.results, found.curves, seed=plan.seed)
            graded, tasks = task_findings(found.results, seed=plan.seed)
            findings |= graded
    with clock.stage("witness_max_delta", "witness_image_error"):
        findings |= witness_findings(
            (reference, candidate), plan, answered.replies, answered.heard, profile.claim
        )
    return Evidence(
        findings=findings,
        results=found.results,
        weights=level.evidence.weights,
        layers=found.layers,
        curves=found.curves,
        tasks=tuple(tasks),
        culprit=_culprit(found.layers, level.differing, profile.claim, plan.place.dtype),
        seconds=clock.seconds,
    )


def _faults(layers: Sequence[LayerError], dtype: str) -> Finding:
    faults = at_fault(layers, dtype)
    note = ""
    if faults:
        first = faults[0]
        note = f"first: {first.name}, {first.local:.2g} by itself"
    return Finding(len(faults), len(layers), note=note)


def _culprit(layers: Sequence[LayerError], differing: Sequence[str], claim: str, dtype: str) -> str:
    """The first module at fault and the tensors inside it, in words; empty without one."""
    faults = at_fault(layers, dtype) if claim == "converted" else []
    if not faults:
        return ""
    first = faults[0]
    inside = tensors_inside(first.name, differing)
    named = ", ".join(inside) if inside else "none of its tensors differs"
    return f"{first.name} (error of its own {first.local:.3g}): {named}"


def _tensor_level(
    reference: Subject, candidate: Subject, claim: str, clock: _Clock, progress: Progress
) -> _Level:
    names = [m.name for m in BY_CLAIM[claim] if "tensors" in m.name or "weight" in m.name]
    with clock.stage("settings_differing"):
        settings = settings_finding(reference.folder, candidate.folder)
    with clock.stage(*names):
        if claim == "converted":
            found = compare_converted(reference, candidate, progress)
            findings = {
                "tensors_differing": found.differing,
                "tensors_unpaired": found.unpaired,
                "settings_differing": settings,
            }
            return _Level(findings, Evidence({}), found.names)
        packed = compare_quantized(reference, candidate, progress)
    same = reference.side.content_digest == candidate.side.content_digest
    findings = {
        "quantized_linears": packed.linears,
        "same_content": Finding(int(same), 1),
        "tensors_unpaired": packed.unpaired,
        "settings_differing": settings,
        "kept_tensors_differing": packed.kept_differing,
        "weight_error_max": packed.worst_error,
        "weight_scale_deviation_max": packed.worst_scale,
    }
    return _Level(findings, Evidence({}, weights=packed.errors))

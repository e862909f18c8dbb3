"""Answers that turned from right to wrong, or back: flips, accuracy, and what n can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verification.evidence import Finding, ProbeResult, TaskResult
from verification.intervals import wilson_interval
from verification.statistics import (
    detectable_difference,
    holm,
    mcnemar_exact,
    paired_difference,
    pairs_needed,
)

_ALPHA = 0.05
_NAMES = ("answer_flips", "accuracy_difference", "mcnemar_p", "tasks_worse")


def task_findings(
    results: Sequence[ProbeResult], *, seed: int
) -> tuple[dict[str, Finding], list[TaskResult]]:
    """Compare the graded answers, all together and kind by kind (a kind is a benchmark)."""
    graded = [r for r in results if r.reference_right is not None]
    if not graded:
        absent = Finding(None, note="no probe has a right answer to be graded by")
        return dict.fromkeys(_NAMES, absent), []
    tasks = _tasks(graded, seed)
    whole = _task("all", graded, seed)
    n, flips = whole.n, whole.lost + whole.gained
    worse = [t.name for t in tasks if t.p_holm < _ALPHA and t.lost > t.gained]
    return {
        "answer_flips": Finding(
            flips / n,
            n,
            wilson_interval(flips, n),
            f"{whole.lost} right to wrong, {whole.gained} wrong to right",
        ),
        "accuracy_difference": Finding(
            100 * whole.difference,
            n,
            (100 * whole.lower, 100 * whole.upper),
            f"{whole.reference_right} right before, {whole.candidate_right} now; "
            + _power(n, flips),
        ),
        "mcnemar_p": Finding(whole.p_value, n, note="exact; never a proof of parity"),
        "tasks_worse": Finding(len(worse), len(tasks), note=", ".join(worse)),
    }, tasks


def _power(n: int, flips: int) -> str:
    share = max(flips, 1) / n
    seen = 100 * detectable_difference(n, share)
    return (
        f"with n = {n} and {100 * flips / n:.2g} % flips one can see {seen:.2g} points, "
        f"1 point takes {pairs_needed(0.01, share)}"
    )


def _tasks(graded: Sequence[ProbeResult], seed: int) -> list[TaskResult]:
    kinds: dict[str, list[ProbeResult]] = {}
    for result in graded:
        kinds.setdefault(result.probe.kind, []).append(result)
    tasks = [_task(kind, members, seed) for kind, members in sorted(kinds.items())]
    adjusted = holm([task.p_value for task in tasks])
    return [replace(task, p_holm=p) for task, p in zip(tasks, adjusted, strict=True)]


def _task(name: str, results: Sequence[ProbeResult], seed: int) -> TaskResult:
    ours = [bool(r.reference_right) for r in results]
    theirs = [bool(r.candidate_right) for r in results]
    groups = [r.probe.group or r.probe.key for r in results]
    test = mcnemar_exact(ours, theirs)
    change = paired_difference(ours, theirs, groups, seed=seed)
    return TaskResult(
        name=name,
        n=len(results),
        reference_right=sum(ours),
        candidate_right=sum(theirs),
        lost=test.lost,
        gained=test.gained,
        difference=change.mean,
        lower=change.lower,
        upper=change.interval[1],
        p_value=test.p_value,
        p_holm=test.p_value,
    )

"""From probe results to measured values: pooled divergences, shares, medians, intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from verification.boxes import overlap, read_boxes
from verification.evidence import Answer, Curve, Finding, ProbeResult
from verification.grading import HIT
from verification.intervals import (
    bootstrap_median,
    bootstrap_percentile,
    bootstrap_ratio,
    wilson_interval,
)
from verification.streaming import Scores, join_scores

_NO_BOXES = Finding(None, note="no probe gave a box")
_NONE_RUN = Finding(None, note="no probe of this sort was run")


def converted_findings(results: Sequence[ProbeResult], *, dtype: str) -> dict[str, Finding]:
    """Measure a lossless claim; nothing is resampled, because nothing may differ."""
    pooled = join_scores(result.scores for result in results)
    n, largest = pooled.n, float(pooled.max_delta.max())
    same = int(pooled.same_top1.sum())
    unexplained = [r.probe.key for r in results if not r.identical and not r.near_tie(2 * largest)]
    boxed = [r for r in results if r.reference_box is not None]
    moved = [r.probe.key for r in boxed if r.candidate_box != r.reference_box]
    delta = Finding(largest, n)
    if dtype != "float32":
        delta = Finding(None, note=f"the limit is float32's, this run was {dtype}", applies=False)
    return {
        "logits_bit_equal": Finding(float(pooled.bit_equal.mean()), n),
        "logits_max_delta": delta,
        "kl_mean": Finding(float(pooled.kl.mean()), n),
        "kl_p99": Finding(float(np.percentile(pooled.kl, 99)), n),
        "top1_agreement": Finding(same / n, n, wilson_interval(same, n)),
        "greedy_unexplained": Finding(len(unexplained), len(results), note=_first(unexplained)),
        "boxes_differing": Finding(len(moved), len(boxed), note=_first(moved))
        if boxed
        else _NO_BOXES,
    }


def quantized_findings(results: Sequence[ProbeResult], *, seed: int) -> dict[str, Finding]:
    """Measure a claim of small loss; every interval draws whole pictures with their dialogues."""
    shown = [r for r in results if r.probe.images]
    spoken = [r for r in results if not r.probe.images]
    pooled = join_scores(result.scores for result in results)
    return {
        "kl_max": Finding(float(pooled.kl.max()), pooled.n),
        "kl_mean": _mean(results, _kl, seed),
        "kl_mean_image": _mean(shown, _kl, seed),
        "kl_mean_text": _mean(spoken, _kl, seed),
        "kl_p99": _p99(results, seed),
        "top1_agreement": _mean(results, _same_top1, seed),
        "top1_agreement_image": _mean(shown, _same_top1, seed),
        "top1_agreement_text": _mean(spoken, _same_top1, seed),
        "ppl_ratio": _ppl_ratio(results, seed),
        "greedy_prefix_median": _prefixes(results, seed),
        "greedy_identical": _share([r.identical for r in results]),
        **_box_findings(results, seed),
    }


def curve_findings(
    results: Sequence[ProbeResult], curves: Sequence[Curve], *, seed: int
) -> dict[str, Finding]:
    """Hold the candidate's KL against the noise floor and against rounding to nearest."""
    found: dict[str, Finding] = {}
    for curve in curves:
        values = np.concatenate(curve.parts)
        if curve.name == "noise floor":
            found["noise_floor"] = Finding(float(values.mean()), len(values))
        else:
            found["kl_rtn_ratio"] = _against(results, curve, seed)
    nothing = "the candidate has no packed layer to round"
    return {
        "noise_floor": Finding(None, note="not measured"),
        "kl_rtn_ratio": Finding(None, note=nothing, applies=False),
        **found,
    }


def _against(results: Sequence[ProbeResult], curve: Curve, seed: int) -> Finding:
    """Mean KL of the candidate as a share of rounding's, on the same positions, drawn together."""
    by_key = {result.probe.key: result for result in results}
    pairs = [(by_key[k], part) for k, part in zip(curve.keys, curve.parts, strict=True)]
    ours = _by_group([(r, float(r.scores.kl.sum())) for r, _ in pairs])
    theirs = _by_group([(r, float(part.sum())) for r, part in pairs])
    if not sum(theirs):
        return Finding(None, note="rounding to nearest changes nothing here")
    interval = bootstrap_ratio(ours, theirs, seed=seed)
    note = f"rounding: {sum(theirs) / sum(len(part) for _, part in pairs):.4g} nats"
    n = sum(len(part) for _, part in pairs)
    return Finding(sum(ours) / sum(theirs), n, interval, note)


def _by_group(values: Sequence[tuple[ProbeResult, float]]) -> list[float]:
    totals: dict[str, float] = {}
    for result, value in values:
        totals[_group(result)] = totals.get(_group(result), 0.0) + value
    return list(totals.values())


def _group(result: ProbeResult) -> str:
    return result.probe.group or result.probe.key


def _box_findings(results: Sequence[ProbeResult], seed: int) -> dict[str, Finding]:
    pairs = [(r, iou) for r in results for iou in box_overlaps(r)]
    asked = [r for r in results if r.probe.truth is not None]
    lost = _NO_BOXES
    if asked:
        unread = [sum(not read_boxes(a.text) for a in side) for side in _sides(asked)]
        note = f"{unread[0]} of the reference, {unread[1]} of the candidate"
        lost = Finding(100 * (unread[1] - unread[0]) / len(asked), len(asked), note=note)
    if not pairs:
        return dict.fromkeys(
            ("box_iou_median", "box_agreement", "box_hit_agreement"), _NO_BOXES
        ) | {"box_parse_failures": lost}
    overlaps = [iou for _, iou in pairs]
    interval = bootstrap_median(overlaps, [_group(r) for r, _ in pairs], seed=seed)
    return {
        "box_iou_median": Finding(float(statistics.median(overlaps)), len(overlaps), interval),
        "box_agreement": _share([iou >= HIT for iou in overlaps]),
        "box_hit_agreement": _hits(asked),
        "box_parse_failures": lost,
    }


def _sides(results: Sequence[ProbeResult]) -> tuple[list[Answer], list[Answer]]:
    return [r.reference for r in results], [r.candidate for r in results]


def _hits(asked: Sequence[ProbeResult]) -> Finding:
    """Where the truth is known: both sides find it, or neither does."""
    agreed, ours, theirs = [], 0, 0
    for result in asked:
        truth = result.probe.truth
        boxes = (result.reference_box, result.candidate_box)
        hits = [
            box is not None and truth is not None and overlap(box, truth) >= HIT for box in boxes
        ]
        agreed.append(hits[0] == hits[1])
        ours, theirs = ours + hits[0], theirs + hits[1]
    if not agreed:
        return _NO_BOXES
    found = _share(agreed)
    note = f"{ours} of {len(agreed)} found by the reference, {theirs} by the candidate"
    return Finding(found.value, found.n, found.interval, note)


def box_overlaps(result: ProbeResult) -> list[float]:
    """Overlap of each pair of boxes; a box that only one side gives overlaps nothing."""
    pairs = [(result.reference_box, result.candidate_box)]
    ours, theirs = read_boxes(result.reference.text), read_boxes(result.candidate.text)
    pairs += zip_longest(ours, theirs)
    given = [pair for pair in pairs if pair != (None, None)]
    return [overlap(a, b) if a is not None and b is not None else 0.0 for a, b in given]


def _kl(part: Scores) -> float:
    return float(part.kl.sum())


def _same_top1(part: Scores) -> float:
    return float(part.same_top1.sum())


def _mean(results: Sequence[ProbeResult], total: Callable[[Scores], float], seed: int) -> Finding:
    if not results:
        return _NONE_RUN
    totals = _by_group([(r, total(r.scores)) for r in results])
    counts = _by_group([(r, float(r.scores.n)) for r in results])
    interval = bootstrap_ratio(totals, counts, seed=seed)
    note = f"{len(results)} dialogues"
    return Finding(sum(totals) / sum(counts), int(sum(counts)), interval, note)


def _p99(results: Sequence[ProbeResult], seed: int) -> Finding:
    groups: dict[str, list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
    for result in results:
        groups.setdefault(_group(result), []).append(result.scores.kl)
    parts = [np.concatenate(part) for part in groups.values()]
    values = np.concatenate(parts)
    interval = bootstrap_percentile(parts, 99, seed=seed)
    return Finding(float(np.percentile(values, 99)), len(values), interval)


def _ppl_ratio(results: Sequence[ProbeResult], seed: int) -> Finding:
    def change(scores: Scores) -> float:
        return float((scores.nll_candidate - scores.nll_reference).sum())

    found = _mean(results, change, seed)
    if found.value is None or found.interval is None:
        return found
    low, high = found.interval
    return Finding(math.exp(found.value), found.n, (math.exp(low), math.exp(high)))


def _prefixes(results: Sequence[ProbeResult], seed: int) -> Finding:
    """The median, with the quartiles of the distribution in the note."""
    lengths = [float(r.common_prefix) for r in results]
    interval = bootstrap_median(lengths, [_group(r) for r in results], seed=seed)
    quartiles = "/".join(f"{value:.0f}" for value in np.percentile(lengths, (10, 25, 75, 90)))
    note = f"10/25/75/90 %: {quartiles}"
    return Finding(float(statistics.median(lengths)), len(lengths), interval, note)


def _share(hits: Sequence[bool]) -> Finding:
    return Finding(sum(hits) / len(hits), len(hits), wilson_interval(sum(hits), len(hits)))


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3])

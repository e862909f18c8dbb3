"""From probe results to measured values: pooled divergences, shares, medians, intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import zip_longest

from verification.boxes import overlap, read_boxes
from verification.divergence import Divergence, join
from verification.evidence import Finding, ProbeResult
from verification.intervals import bootstrap_median, bootstrap_ratio, wilson_interval

_HIT = 0.5  # overlap from which two boxes count as the same place
_NO_BOXES = Finding(None, note="no probe gave a box")


def converted_findings(results: Sequence[ProbeResult], *, seed: int) -> dict[str, Finding]:
    """Measure a lossless claim; nothing is resampled, because nothing may differ."""
    pooled = join(result.divergence for result in results)
    n = pooled.n
    tolerance = 2 * pooled.max_abs_delta
    unexplained = [r.probe.key for r in results if not r.identical and not r.near_tie(tolerance)]
    boxed = [r for r in results if r.reference_box is not None]
    moved = [r.probe.key for r in boxed if r.candidate_box != r.reference_box]
    return {
        "logits_max_delta": Finding(pooled.max_abs_delta, n),
        "kl_mean": Finding(pooled.kld_mean, n),
        "kl_p99": Finding(pooled.kld_p99, n),
        "top1_agreement": Finding(pooled.top1_agreement, n, pooled.top1_ci95_wilson),
        "greedy_unexplained": Finding(len(unexplained), len(results), note=_first(unexplained)),
        "boxes_differing": Finding(len(moved), len(boxed), note=_first(moved))
        if boxed
        else _NO_BOXES,
    }


def quantized_findings(results: Sequence[ProbeResult], *, seed: int) -> dict[str, Finding]:
    """Measure a claim of small loss; intervals draw dialogues, those of boxes boxes."""
    pooled = join(result.divergence for result in results)
    shown = [r for r in results if r.probe.images]
    spoken = [r for r in results if not r.probe.images]
    return {
        "kl_max": Finding(pooled.kld_max, pooled.n),
        "kl_mean": _mean(results, _kl, seed),
        "kl_mean_image": _mean(shown, _kl, seed),
        "kl_mean_text": _mean(spoken, _kl, seed),
        "kl_p99": Finding(pooled.kld_p99, pooled.n),
        "top1_agreement": _mean(results, _same_top1, seed),
        "top1_agreement_image": _mean(shown, _same_top1, seed),
        "top1_agreement_text": _mean(spoken, _same_top1, seed),
        "ppl_ratio": _ppl_ratio(results, seed),
        "greedy_prefix_median": _median([r.common_prefix for r in results], seed),
        "greedy_identical": _share([r.identical for r in results]),
        **_box_findings(results, seed),
    }


def _box_findings(results: Sequence[ProbeResult], seed: int) -> dict[str, Finding]:
    overlaps = [iou for result in results for iou in box_overlaps(result)]
    if not overlaps:
        return {"box_iou_median": _NO_BOXES, "box_agreement": _NO_BOXES}
    return {
        "box_iou_median": _median(overlaps, seed),
        "box_agreement": _share([iou >= _HIT for iou in overlaps]),
    }


def box_overlaps(result: ProbeResult) -> list[float]:
    """Overlap of each pair of boxes; a box that only one side gives overlaps nothing."""
    pairs = [(result.reference_box, result.candidate_box)]
    ours, theirs = read_boxes(result.reference.text), read_boxes(result.candidate.text)
    pairs += zip_longest(ours, theirs)
    given = [pair for pair in pairs if pair != (None, None)]
    return [overlap(a, b) if a is not None and b is not None else 0.0 for a, b in given]


def _kl(part: Divergence) -> float:
    return float(part.kld_per_token.sum())


def _same_top1(part: Divergence) -> float:
    return float(part.same_top1.sum())


def _mean(
    results: Sequence[ProbeResult], total: Callable[[Divergence], float], seed: int
) -> Finding:
    if not results:
        return Finding(None, note="no probe of this sort was run")
    totals = [total(r.divergence) for r in results]
    counts = [r.divergence.n for r in results]
    interval = bootstrap_ratio(totals, counts, seed=seed)
    note = f"{len(results)} dialogues"
    return Finding(sum(totals) / sum(counts), sum(counts), interval, note)


def _ppl_ratio(results: Sequence[ProbeResult], seed: int) -> Finding:
    changes = [float((r.divergence.nll_cand - r.divergence.nll_base).sum()) for r in results]
    counts = [r.divergence.n for r in results]
    low, high = bootstrap_ratio(changes, counts, seed=seed)
    value = math.exp(sum(changes) / sum(counts))
    return Finding(value, sum(counts), (math.exp(low), math.exp(high)))


def _median(values: Sequence[float], seed: int) -> Finding:
    interval = bootstrap_median(values, seed=seed)
    return Finding(float(statistics.median(values)), len(values), interval)


def _share(hits: Sequence[bool]) -> Finding:
    return Finding(sum(hits) / len(hits), len(hits), wilson_interval(sum(hits), len(hits)))


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3])

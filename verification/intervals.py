"""Confidence intervals: Wilson and Clopper-Pearson for shares, bootstrap over whole dialogues."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # 97.5 % point of the normal distribution
_RESAMPLES = 2000
_BLOCK = 1 << 22  # draws in memory at once

Interval = tuple[float, float]
Floats = NDArray[np.float64]


def wilson_interval(hits: int, n: int) -> Interval:
    """Wilson's 95 % score interval of a share."""
    share, z2 = hits / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # at the ends the formula gives 0 and 1 but for rounding
    return (centre - half if hits else 0.0), (centre + half if hits < n else 1.0)


def exact_interval(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """Clopper-Pearson interval of a share, by bisection on the binomial tail."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _bisect(lambda p: _at_least(hits, n, p) - tail)
    high = 1.0 if hits == n else _bisect(lambda p: tail - (1 - _at_least(hits + 1, n, p)))
    return low, high


def _at_least(hits: int, n: int, p: float) -> float:
    """P(X >= hits) for X ~ Binomial(n, p), 0 < p < 1."""
    k = np.arange(hits, n + 1)
    choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    return float(np.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p)).sum())


def _bisect(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def bootstrap_ratio(
    totals: Sequence[float], counts: Sequence[float], *, seed: int, resamples: int = _RESAMPLES
) -> Interval:
    """95 % interval of sum(totals) / sum(counts), drawing whole groups with replacement.

    Tokens of one answer are not independent of each other; dialogues are, so they are what is
    drawn.
    """
    means = _drawn_ratios(np.asarray(totals, float), np.asarray(counts, float), seed, resamples)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _drawn_ratios(totals: Floats, sizes: Floats, seed: int, resamples: int) -> Floats:
    blocks = _weights(len(totals), seed=seed, resamples=resamples)
    return np.concatenate([(block @ totals) / (block @ sizes) for block in blocks])


def bootstrap_percentile(
    parts: Sequence[Floats], percent: float, *, seed: int, resamples: int = 400
) -> Interval:
    """95 % interval of a percentile over all values, drawing whole groups (arrays) of values.

    A drawn group counts its values as often as it was drawn; the percentile of such a weighted
    list is the smallest value that at least that share of the weight does not exceed.
    """
    values = np.concatenate([np.asarray(part, float) for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    found = []
    for block in _weights(len(parts), seed=seed, resamples=resamples):
        for weights in block:
            reached = np.cumsum(weights[owner])
            place = int(np.searchsorted(reached, percent / 100 * reached[-1], side="left"))
            found.append(values[min(place, len(values) - 1)])
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_median(values: Sequence[float], groups: Sequence[str], *, seed: int) -> Interval:
    """95 % interval of a median, drawing whole groups of values with replacement."""
    parts = [np.asarray(part) for part in grouped(values, groups)]
    return bootstrap_percentile(parts, 50, seed=seed, resamples=_RESAMPLES)


def cluster_draws(values: ArrayLike, groups: Sequence[str], *, seed: int) -> Floats:
    """Means of `_RESAMPLES` draws of whole groups of values."""
    parts = grouped(np.asarray(values, float).tolist(), groups)
    totals = np.array([sum(part) for part in parts])
    sizes = np.array([len(part) for part in parts], float)
    return _drawn_ratios(totals, sizes, seed, _RESAMPLES)


def grouped(values: Sequence[float], groups: Sequence[str]) -> list[list[float]]:
    """Put values of one group together, groups in the order in which they first occur."""
    found: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        found.setdefault(group, []).append(value)
    return list(found.values())


def _weights(groups: int, *, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each group was drawn, in blocks (some resamples, groups) that fit in memory."""
    dice = np.random.default_rng(seed)
    block = max(1, _BLOCK // groups)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = dice.integers(0, groups, size=(rows, groups))
        flat = drawn + np.arange(rows)[:, None] * groups
        counts = np.bincount(flat.ravel(), minlength=rows * groups)
        yield counts.reshape(rows, groups).astype(np.float64)

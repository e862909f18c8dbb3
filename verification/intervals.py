"""Confidence intervals: Wilson and Clopper-Pearson for shares, bootstrap over whole dialogues."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # 97.5 % point of the normal distribution
_RESAMPLES = 2000

Interval = tuple[float, float]


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
    totals: Sequence[float], counts: Sequence[int], *, seed: int, resamples: int = _RESAMPLES
) -> Interval:
    """95 % interval of sum(totals) / sum(counts), drawing whole groups with replacement.

    Tokens of one answer are not independent of each other; dialogues are, so they are what is
    drawn.
    """
    every, sizes = np.asarray(totals, float), np.asarray(counts, float)
    drawn = _draws(len(every), seed=seed, resamples=resamples)
    means = every[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_median(values: Sequence[float], *, seed: int) -> Interval:
    """95 % interval of a median, drawing values with replacement."""
    every = np.asarray(values, float)
    drawn = _draws(len(every), seed=seed, resamples=_RESAMPLES)
    low, high = np.percentile(np.median(every[drawn], axis=1), (2.5, 97.5))
    return float(low), float(high)


def _draws(groups: int, *, seed: int, resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, groups, size=(resamples, groups))

"""Paired comparisons of two models on the same questions: tests, bounds, and what n can show.

Non-inferiority is what the gate decides by: the lower bound of the paired difference must stay
above a margin. A p-value of McNemar's test is shown beside it and never taken for proof of parity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verification.intervals import cluster_draws

_Z_ONE_SIDED = 1.6448536269514722  # 95 % point of the normal distribution
_Z_POWER = 0.8416212335729143  # 80 % point


@dataclass(frozen=True, slots=True)
class McNemar:
    """Discordant pairs of two graders' outcomes, and the exact two-sided p-value."""

    lost: int  # right before, wrong now
    gained: int  # wrong before, right now
    p_value: float


def mcnemar_exact(reference: Sequence[bool], candidate: Sequence[bool]) -> McNemar:
    """Test whether losses and gains are balanced: a binomial test on the discordant pairs.

    Raises:
        ValueError: the two lists do not pair.
    """
    pairs = list(zip(reference, candidate, strict=True))
    lost = sum(bool(a) and not b for a, b in pairs)
    gained = sum(bool(b) and not a for a, b in pairs)
    return McNemar(lost, gained, binomial_two_sided(lost, lost + gained))


def binomial_two_sided(hits: int, n: int) -> float:
    """Exact two-sided p-value of `hits` of `n` under p = 1/2; 1 without any trial."""
    if n == 0:
        return 1.0
    fewer = min(hits, n - hits)
    # integers are exact however large n is; at p = 1/2 both tails are alike
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * (tail / 2**n if n < 1000 else _ratio(tail, n)))


def _ratio(tail: int, n: int) -> float:
    return math.exp(math.log(tail) - n * math.log(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of candidate minus reference over pairs, and how sure it is."""

    mean: float
    lower: float  # one-sided 95 % bound: the difference is above it
    interval: tuple[float, float]  # two-sided 95 %
    n: int


def paired_difference(
    reference: ArrayLike, candidate: ArrayLike, groups: Sequence[str], *, seed: int
) -> PairedDifference:
    """Compare paired scores, drawing whole groups (one image's questions) with replacement.

    Where all differences are nil nothing can be drawn from them; the bound is then the exact one
    for no event in n (the rule of three), so that few pairs never look like certainty.

    Raises:
        ValueError: nothing to compare, or lists that do not pair.
    """
    change = np.asarray(candidate, float) - np.asarray(reference, float)
    if len(change) == 0 or len(change) != len(groups):
        raise ValueError(f"{len(change)} pairs in {len(groups)} groups")
    n, mean = len(change), float(change.mean())
    if not change.any():
        unseen = 1 - 0.05 ** (1 / len(set(groups)))
        return PairedDifference(mean, -unseen, (-unseen, unseen), n)
    drawn = cluster_draws(change, groups, seed=seed)
    low, one_sided, high = np.percentile(drawn, (2.5, 5, 97.5))
    return PairedDifference(mean, float(one_sided), (float(low), float(high)), n)


def detectable_difference(n: int, discordant: float) -> float:
    """The margin that n pairs can show with 80 % power when nothing was lost.

    Args:
        n: pairs.
        discordant: share of pairs that flip, either way; the variance of the difference.
    """
    return (_Z_ONE_SIDED + _Z_POWER) * math.sqrt(discordant / n)


def pairs_needed(margin: float, discordant: float) -> int:
    """How many pairs show non-inferiority within `margin` with 80 % power."""
    return math.ceil(((_Z_ONE_SIDED + _Z_POWER) / margin) ** 2 * discordant)


@dataclass(frozen=True, slots=True)
class PairedScores:
    """The paired t-test of two score lists, as tables of results give it."""

    mean_diff: float
    sem: float
    t: float


def paired_t(reference: ArrayLike, candidate: ArrayLike) -> PairedScores:
    """Mean difference, its standard error (ddof 1) and t of two paired score lists.

    Raises:
        ValueError: fewer than two pairs.
    """
    change = np.asarray(candidate, float) - np.asarray(reference, float)
    if len(change) < 2:
        raise ValueError("a standard error takes two pairs or more")
    sem = float(change.std(ddof=1) / math.sqrt(len(change)))
    mean = float(change.mean())
    return PairedScores(mean, sem, mean / sem if sem else math.copysign(math.inf, mean))

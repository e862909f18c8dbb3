"""KL divergence and its company over a vocabulary that never lies in memory as a whole.

What both sides keep of an answer is its last hidden states. Logits are made from them a slice of
the vocabulary at a time, and four running sums per position are enough: with m the largest logit
so far, s = Σ exp(a - m) and t = Σ exp(a - m)·(a - b),

    KL(a || b) = t / s - logsumexp(a) + logsumexp(b).

Sums are in float64. Memory is positions × slice, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
SLICE = 8192  # vocabulary rows in memory at once


class Head(Protocol):
    """The unembedding: `rows(a, b)` are rows a … b - 1 of (vocabulary, hidden), float32."""

    @property
    def vocabulary(self) -> int: ...

    def rows(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry per scored position; what the gate needs to know of two distributions."""

    kl: Floats  # KL(reference || candidate), nats
    same_top1: NDArray[np.bool_]
    nll_reference: Floats  # negative log likelihood of the label
    nll_candidate: Floats
    max_delta: Floats  # largest |Δ logit| of the position
    bit_equal: NDArray[np.bool_]  # every logit has the same bits on both sides

    @property
    def n(self) -> int:
        return len(self.kl)

    def part(self, start: int, stop: int) -> Scores:
        """Some of the positions."""
        return Scores(*(getattr(self, field.name)[start:stop] for field in fields(self)))


def join_scores(parts: Iterable[Scores]) -> Scores:
    """Put the positions of several comparisons together, in order."""
    every = list(parts)
    return Scores(
        *(np.concatenate([getattr(part, field.name) for part in every]) for field in fields(Scores))
    )


def score_streaming(
    reference: tuple[Tensor, Head],
    candidate: tuple[Tensor, Head],
    labels: Tensor,
    *,
    width: int = SLICE,
) -> Scores:
    """Compare two models' next-token distributions, a slice of the vocabulary at a time.

    Args:
        reference: hidden states (positions, hidden) after the last norm, and the head.
        candidate: the same of the other side.
        labels: (positions,) the tokens that were to come.
        width: rows of the vocabulary in memory at once.

    Raises:
        ValueError: vocabularies or positions that do not match, or a logit that is not finite.
    """
    (a_hidden, a_head), (b_hidden, b_head) = reference, candidate
    if a_head.vocabulary != b_head.vocabulary or len(a_hidden) != len(b_hidden):
        raise ValueError(
            f"vocabularies {a_head.vocabulary} and {b_head.vocabulary}, "
            f"positions {len(a_hidden)} and {len(b_hidden)}"
        )
    sums = RunningSums(labels)
    for start in range(0, a_head.vocabulary, width):
        stop = min(start + width, a_head.vocabulary)
        sums.add(
            a_hidden @ a_head.rows(start, stop).T, b_hidden @ b_head.rows(start, stop).T, start
        )
    return sums.scores()


class RunningSums:
    """What has to be remembered of the slices that went by."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels
        n, like = len(labels), labels.new_zeros(len(labels), dtype=torch.float64)
        self._a, self._b = _LogSum(like), _LogSum(like)
        self._weighted = like.clone()  # t of the module's docstring
        self._label_logits = like.new_full((2, n), torch.nan)
        self._delta = like.clone()
        self._equal = torch.ones_like(labels, dtype=torch.bool)

    def add(self, reference: Tensor, candidate: Tensor, start: int) -> None:
        """Take the logits (positions, slice) of the vocabulary from `start` on.

        Raises:
            ValueError: a logit that is not finite.
        """
        a, b = reference.double(), candidate.double()
        gap = a - b
        if not torch.isfinite(gap).all():
            raise ValueError("a logit is not finite")
        shrink = self._a.add(a, start)
        self._b.add(b, start)
        # the reference's weights are relative to its largest logit, which may just have grown
        weights = (a - self._a.top[:, None]).exp_()
        self._weighted = self._weighted * shrink + (weights * gap).sum(-1)
        self._delta = torch.maximum(self._delta, gap.abs().amax(-1))
        self._equal &= (reference == candidate).all(-1)
        inside = (self._labels >= start) & (self._labels < start + a.shape[1])
        at = (self._labels - start).clamp(0, a.shape[1] - 1)[:, None]
        for row, logits in enumerate((a, b)):
            found = logits.gather(1, at)[:, 0]
            self._label_logits[row] = torch.where(inside, found, self._label_logits[row])

    def scores(self) -> Scores:
        """The result, when every slice has been taken."""
        log_a, log_b = self._a.value(), self._b.value()
        kl = self._weighted / self._a.total - log_a + log_b
        return Scores(
            kl=kl.clamp(min=0).cpu().numpy(),  # rounding can leave -1e-17, which no distance is
            same_top1=(self._a.best == self._b.best).cpu().numpy(),
            nll_reference=(log_a - self._label_logits[0]).cpu().numpy(),
            nll_candidate=(log_b - self._label_logits[1]).cpu().numpy(),
            max_delta=self._delta.cpu().numpy(),
            bit_equal=self._equal.cpu().numpy(),
        )


class _LogSum:
    """A running logsumexp with the place of the largest."""

    def __init__(self, like: Tensor) -> None:
        self.top = torch.full_like(like, -torch.inf)
        self.total = torch.zeros_like(like)
        self.best = torch.zeros_like(like, dtype=torch.long)

    def add(self, logits: Tensor, start: int) -> Tensor:
        """Take a slice; returns the factor by which earlier sums shrink."""
        largest, place = logits.max(-1)
        grown = largest > self.top  # of equal ones the first stays, as argmax has it
        self.best = torch.where(grown, place + start, self.best)
        top = torch.maximum(self.top, largest)
        shrink = (self.top - top).exp()
        self.total = self.total * shrink + (logits - top[:, None]).exp().sum(-1)
        self.top = top
        return shrink

    def value(self) -> Tensor:
        return self.top + self.total.log()

"""Multiple choice by likelihood, as ScienceQA and SEED-Bench are scored: no answer is generated.

Every option's tokens (" A", " B", …) are put behind the question; the choice is the option whose
tokens are the least surprising on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from verification.answer_metrics import Profile, check, mean

OptionNlls = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """One question: each option's negative log likelihoods, token by token, and the right one."""

    nlls: OptionNlls
    answer: int

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.nlls):
            raise ValueError(f"answer {self.answer} is none of {len(self.nlls)} options")


def token_nlls(logits: ArrayLike, tokens: Sequence[int]) -> list[float]:
    """Negative log likelihoods in nats, in float64.

    Args:
        logits: (len(tokens), vocabulary); a row predicts its token, so it was read one position
            before it.
        tokens: the option's, without the question's.

    Raises:
        ValueError: shapes that do not fit, or a token outside the vocabulary.
    """
    rows = np.asarray(logits, np.float64)
    if rows.ndim != 2 or len(rows) != len(tokens):
        raise ValueError(f"logits of shape {rows.shape} for {len(tokens)} tokens")
    if not all(0 <= token < rows.shape[1] for token in tokens):
        raise ValueError(f"a token is outside the vocabulary of {rows.shape[1]}")
    highest = rows.max(axis=1)
    whole = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
    return [float(x) for x in whole - rows[np.arange(len(rows)), list(tokens)]]


def choice_losses(nlls: OptionNlls) -> list[float]:
    """The mean negative log likelihood of each option's tokens."""
    return [mean(option) for option in nlls]


def multiple_choice(nlls: OptionNlls, *, profile: Profile = "standard") -> int:
    """The index of the option with the lowest mean negative log likelihood; of equals, the first.

    The standard profile takes no option without tokens and no number that is infinite or none at
    all; the scripts of 2023 let such an option win, as argmin does.

    Raises:
        ValueError: no options, in the standard profile one without a loss, or an unknown profile.
    """
    losses = choice_losses(nlls)
    if not losses:
        raise ValueError("a choice needs options")
    if check(profile) == "standard" and not all(map(math.isfinite, losses)):
        raise ValueError(f"options have the losses {losses}: there is nothing to choose by")
    return int(np.argmin(losses))


def choice_accuracy(rows: Sequence[ChoiceRow], *, profile: Profile = "standard") -> float:
    """The share of questions answered right, 0 … 1; not a number without any."""
    return mean([multiple_choice(row.nlls, profile=profile) == row.answer for row in rows])


def frame_indices(frames: int, *, segments: int) -> list[int]:
    """The frames of a video that SEED-Bench shows: one per segment, from half a segment on.

    A video with fewer frames than segments is shown whole. Halves round to even.

    Raises:
        ValueError: no frames or no segments.
    """
    if frames < 1 or segments < 1:
        raise ValueError(f"{segments} segments of {frames} frames")
    if segments > frames:
        return list(range(frames))
    length = (frames - 1) / segments
    start = int(length / 2)
    return [start + round(length * i) for i in range(segments)]

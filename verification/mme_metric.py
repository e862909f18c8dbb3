"""MME: yes-or-no questions in pairs; accuracy and accuracy of whole pictures, summed per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from verification.answer_metrics import Profile, check

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip
Said = Literal["yes", "no", "other"]
_LOOKED_AT = 4  # characters


@dataclass(frozen=True, slots=True)
class MmeRow:
    """One question; two of them, one after the other, are about one picture."""

    image: str
    question: str
    truth: str
    answer: str


@dataclass(frozen=True, slots=True)
class MmeScores:
    """Scores by task (0 … 200), and their two sums."""

    tasks: Mapping[str, float]

    @property
    def perception(self) -> float:
        return sum(self.tasks.get(task, 0.0) for task in PERCEPTION)

    @property
    def cognition(self) -> float:
        return sum(self.tasks.get(task, 0.0) for task in COGNITION)


def mme(rows: Mapping[str, Sequence[MmeRow]], *, profile: Profile = "standard") -> MmeScores:
    """Score MME: 100 · (accuracy + share of pictures with both questions right), task by task.

    Raises:
        ValueError: an odd number of questions, or an unknown profile.
    """
    check(profile)
    return MmeScores({task: _task(task, found, profile) for task, found in rows.items()})


def _task(task: str, rows: Sequence[MmeRow], profile: str) -> float:
    if not rows or len(rows) % 2:
        raise ValueError(f"{task} has {len(rows)} questions, and they come in pairs")
    right = [said(row.answer, profile=profile) == row.truth.strip().lower() for row in rows]
    pairs = [a and b for a, b in zip(right[::2], right[1::2], strict=True)]
    return 100 * (sum(right) / len(right) + sum(pairs) / len(pairs))


def said(answer: str, *, profile: str) -> Said:
    """Read yes or no out of an answer.

    In 2023 the first four characters decided, so "know" was a no; the standard profile wants the
    word.
    """
    text = answer.lower()
    if profile == "qwen-2023":
        if text in ("yes", "no"):
            return "yes" if text == "yes" else "no"
        start = text[:_LOOKED_AT]
        return "yes" if "yes" in start else "no" if "no" in start else "other"
    word = text.strip().split(" ")[0].strip(".,!:;\"'")
    return "yes" if word in ("yes", "y") else "no" if word in ("no", "n") else "other"

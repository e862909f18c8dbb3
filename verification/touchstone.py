"""TouchStone (Bai et al. 2023): a judge grades a model's answer beside a reference's, twice.

In round 1 the reference's answer comes first, in round 2 the model's, so that a liking for one
place cancels out. The score is 100 times the model's mean grade over all rounds that could be
read. The reference gets its own mean: it moves when the judge does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model_store.errors import IncompleteEvidenceError
from verification.answer_metrics import Profile, check, mean
from verification.judge_prompt import JudgePrompt

ROUNDS = (1, 2)
_LOWEST, _HIGHEST = 1.0, 10.0
_MOST_DROPPED = 0.01  # of the rounds; beyond it there is no result
_PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?")
_COLUMNS = ("index", "question", "human_annotation", "gpt4_ha_answer", "category", "response")

State = Literal["ok", "unreadable", "missing"]


@dataclass(frozen=True, slots=True)
class TouchStoneRow:
    """One question of the data set, with the answer of the model under test."""

    index: str
    question: str
    description: str  # of the picture, by people: all that the judge knows of it
    reference: str  # the answer that the model's is compared with
    categories: str  # names with commas between them
    response: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> TouchStoneRow:
        """Read a record under the names of the data set's columns.

        Raises:
            ValueError: a column is missing.
        """
        missing = [name for name in _COLUMNS if record.get(name) is None]
        if missing:
            raise ValueError(f"a TouchStone row lacks {', '.join(missing)}")
        return cls(*(str(record[name]) for name in _COLUMNS))


@dataclass(frozen=True, slots=True)
class Round:
    """One call of the judge; without a readable reply both grades are None."""

    index: str
    number: int
    reference: float | None
    model: float | None
    state: State


@dataclass(frozen=True, slots=True)
class Means:
    """100 times the mean grades over some rounds; not a number where there are none."""

    model: float
    reference: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Scores:
    """All rounds, and the means over those that could be read: together and by category."""

    overall: Means
    categories: Mapping[str, Means]
    rounds: tuple[Round, ...]

    @property
    def dropped(self) -> int:
        """Rounds without a grade."""
        return sum(one.state != "ok" for one in self.rounds)

    @property
    def complete(self) -> bool:
        """Whether so few rounds were dropped (1 %) that the means stand for the whole set."""
        return bool(self.rounds) and self.dropped <= _MOST_DROPPED * len(self.rounds)

    def require_complete(self) -> None:
        """Refuse to go on with a score that too many rounds are missing from.

        Raises:
            IncompleteEvidenceError: more than 1 % of the rounds have no grade.
        """
        if not self.complete:
            raise IncompleteEvidenceError(
                f"{self.dropped} of {len(self.rounds)} TouchStone rounds have no grade",
                hint="Ask the judge again for these rounds, and score all replies together.",
            )


def score(
    rows: Sequence[TouchStoneRow | Mapping[str, Any]],
    replies: Mapping[str, str | None],
    *,
    profile: Profile = "standard",
) -> Scores:
    """Grade a model from what the judge replied.

    Args:
        rows: the questions, or their records as `TouchStoneRow.of` reads them.
        replies: by "index.round", such as "17.2"; one that is not there or None is missing.
        profile: how replies are read; see `grades`.

    Raises:
        ValueError: an index twice, a reply to none of the rounds, or an unknown profile.
    """
    check(profile)
    asked = [row if isinstance(row, TouchStoneRow) else TouchStoneRow.of(row) for row in rows]
    keys = {round_key(row, number) for row in asked for number in ROUNDS}
    if len(keys) != len(ROUNDS) * len(asked):
        raise ValueError("two TouchStone rows have the same index")
    if strange := sorted(set(replies) - keys):
        raise ValueError(f"there is no round {strange[0]!r}")
    judged = {row: [_round(row, n, replies, profile) for n in ROUNDS] for row in asked}
    rounds = tuple(one for found in judged.values() for one in found)
    return Scores(_means(rounds), _by_category(judged, profile), rounds)


def questions(
    rows: Sequence[TouchStoneRow], prompt: JudgePrompt
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """What to ask the judge: every round's key, and its messages."""
    for row in rows:
        for number in ROUNDS:
            pair = (row.reference, row.response)
            first, second = pair if number == 1 else pair[::-1]
            yield (
                round_key(row, number),
                prompt.messages(
                    description=row.description, question=row.question, first=first, second=second
                ),
            )


def round_key(row: TouchStoneRow, number: int) -> str:
    """The name of one round in the replies."""
    return f"{row.index}.{number}"


def grades(reply: str, *, profile: Profile = "standard") -> tuple[float, float]:
    """Read the two grades of a reply: two numbers with one space between them, nothing else.

    The scripts of 2023 took whatever Python reads as a number: 11, -1, nan, digits of any script.
    The standard profile takes plain numbers from 1 to 10. It looks at the first line alone, because
    not every judge can be stopped at its end.

    Raises:
        ValueError: there are no two grades, or an unknown profile.
    """
    text = reply.strip()
    if check(profile) == "standard":
        text = text.partition("\n")[0].rstrip()
    parts = text.split(" ")
    if len(parts) != 2:
        raise ValueError(f"{reply!r} is not two grades with a space between them")
    first, second = (_grade(part, profile) for part in parts)
    return first, second


def _grade(text: str, profile: Profile) -> float:
    if profile == "standard" and not _PLAIN.fullmatch(text):
        raise ValueError(f"{text!r} is not a plain number")
    number = float(text)
    if profile == "standard" and not _LOWEST <= number <= _HIGHEST:
        raise ValueError(f"{text} is not from 1 to 10")
    return number


def _round(
    row: TouchStoneRow, number: int, replies: Mapping[str, str | None], profile: Profile
) -> Round:
    reply = replies.get(round_key(row, number))
    if reply is None:
        return Round(row.index, number, None, None, "missing")
    try:
        first, second = grades(reply, profile=profile)
    except ValueError:
        return Round(row.index, number, None, None, "unreadable")
    reference, model = (first, second) if number == 1 else (second, first)
    return Round(row.index, number, reference, model, "ok")


def _by_category(
    judged: Mapping[TouchStoneRow, Sequence[Round]], profile: Profile
) -> dict[str, Means]:
    """A row with several categories counts in each; the scripts of 2023 kept spaces in names."""
    found: dict[str, list[Round]] = {}
    for row, rounds in judged.items():
        for name in row.categories.split(","):
            found.setdefault(name.strip() if profile == "standard" else name, []).extend(rounds)
    return {name: _means(rounds) for name, rounds in found.items()}


def _means(rounds: Sequence[Round]) -> Means:
    model = [one.model for one in rounds if one.model is not None]
    reference = [one.reference for one in rounds if one.reference is not None]
    return Means(100 * mean(model), 100 * mean(reference), len(model))

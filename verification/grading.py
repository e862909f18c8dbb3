"""Whether an answer is right, for probes whose truth is known.

The rule is lenient and the same for both sides: what matters is not the level but who changes. An
answer is right when it says the truth as whole words and says none of the truth's rivals, so that
"The circle is red." is right for "red", and "red and blue" is not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from qwen_vl.scene_words import (
    BACKGROUNDS,
    COLOURS,
    HAS,
    HAS_NOT,
    NO,
    SHAPES,
    SIDES,
    WORDS,
    YES,
    Named,
)
from verification.boxes import overlap, read_boxes
from verification.probes import Probe

HIT = 0.5  # overlap with the truth from which a box counts as found
_UNGRADED = frozenset({"text", "caption"})  # many answers are right
_SPACES = re.compile(r"\s+")
_PUNCTUATION = re.compile(r"[^\w\s]")
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ONE_WORD = 24  # a longer truth is a sentence, and has to be said as it is


def grade(probe: Probe, said: str) -> bool | None:
    """Say whether `said` answers the probe; None where nobody knows."""
    if probe.truth is not None:
        found = read_boxes(said)
        return bool(found) and overlap(found[0], probe.truth) >= HIT
    if probe.answer is None or probe.kind in _UNGRADED:
        return None
    truth, answer = normalized(probe.answer), normalized(said)
    if truth == answer:
        return True
    if probe.kind == "choice":  # a letter: "a" is also a word
        return answer.split(" ")[0] == truth
    if len(truth) > _ONE_WORD or " " in truth:
        return False
    return _says(answer, truth) and not any(
        _says(answer, rival) for rival in _rivals(truth) if rival not in truth
    )


def normalized(text: str) -> str:
    """Lower case, one width, digits for number words, no punctuation, single spaces."""
    plain = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).lower())
    return " ".join(_DIGITS.get(word, word) for word in _SPACES.split(plain.strip()))


def _says(answer: str, word: str) -> bool:
    if word.isascii():
        return f" {word} " in f" {answer} "
    return word in answer  # Chinese has no spaces between words


def _families() -> list[frozenset[str]]:
    def words(items: Iterable[Named]) -> list[frozenset[str]]:
        listed = list(items)
        return [frozenset(i.en for i in listed), frozenset(i.zh for i in listed)]

    colours = words((*COLOURS, *BACKGROUNDS))
    closed = [*words((YES, NO)), *words((HAS, HAS_NOT)), *words(SIDES.values())]
    numbers = frozenset(_DIGITS.values())
    printed = frozenset(word.lower() for word in WORDS)
    return [*colours, *words(SHAPES), *closed, numbers, printed]


_FAMILIES = _families()


def _rivals(truth: str) -> frozenset[str]:
    """The other words that could stand in the truth's place."""
    return next((family - {truth} for family in _FAMILIES if truth in family), frozenset())

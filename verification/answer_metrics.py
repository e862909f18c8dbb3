"""Metrics of short answers: exact match, GQA, ANLS, relaxed accuracy, VQA accuracy.

Each has two profiles. "standard" is what the metric's authors define; "qwen-2023" is what the
evaluation scripts of Qwen-VL computed, defects included, for scores that must be comparable with
published ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from verification.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS, PUNCTUATION

Profile = Literal["standard", "qwen-2023"]
_ANLS_LEAST = 0.5
_TOLERANCE = 0.05
_VQA_FULL = 3  # as many people as must agree for a whole point
# in this order, and as substrings: "This is the left" is cut after its first "is "
_GQA_CUTS = ("is ", "are ", "a ", "an ", "the ", " of")
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")


def exact_match(prediction: str, answers: Sequence[str], *, profile: Profile = "standard") -> float:
    """1 when the answer is one of those accepted, but for case and outer spaces; else 0.

    The standard profile also forgives a full stop at the end.
    """
    check(profile)

    def plain(text: str) -> str:
        bare = text.strip().lower()
        return bare.rstrip(".").rstrip() if profile == "standard" else bare

    return float(any(plain(prediction) == plain(answer) for answer in answers))


def gqa(prediction: str, answers: Sequence[str], *, profile: Profile = "standard") -> float:
    """Exact match on GQA; the scripts of 2023 cut the answer down first (`gqa_answer`)."""
    said = gqa_answer(prediction) if check(profile) == "qwen-2023" else prediction
    return exact_match(said, answers, profile=profile)


def gqa_answer(text: str) -> str:
    """Cut an answer as the scripts of 2023 did: first clause, lower case, no leading words."""
    for mark in (".", ",", "!"):
        text = text.split(mark)[0]
    text = text.lower()
    for cut in _GQA_CUTS:
        parts = text.split(cut)
        if cut == " of":
            text = parts[0]
        elif len(parts) > 1:
            text = parts[1]
    return text.strip()


def anls(
    prediction: str,
    answers: Sequence[str],
    *,
    profile: Profile = "standard",
    threshold: float = _ANLS_LEAST,
) -> float:
    """Average normalized Levenshtein similarity of one answer: the best over those accepted.

    The distance is of the lower-cased texts with single spaces, its norm the longer of the texts as
    they were given; a similarity below the threshold counts as nothing. Both profiles agree.
    """
    check(profile)
    best = max((_similarity(prediction, answer) for answer in answers), default=0.0)
    return best if best >= threshold else 0.0


def _similarity(one: str, other: str) -> float:
    a, b = (" ".join(text.strip().lower().split()) for text in (one, other))
    longest = max(len(one.upper()), len(other.upper()))
    return 1.0 if longest == 0 else 1.0 - levenshtein(a, b) / longest


def levenshtein(a: str, b: str) -> int:
    """Edits between two texts: insertions, deletions, substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def relaxed_accuracy(prediction: str, answer: str, *, profile: Profile = "standard") -> bool:
    """ChartQA: within 5 % of a number, else equal but for case; the prediction is stripped first.

    The scripts of 2023 exchanged the two arguments: the tolerance was relative to the prediction.
    """
    prediction = prediction.strip()
    if check(profile) == "qwen-2023":
        prediction, answer = answer, prediction
    said, wanted = _number(prediction), _number(answer)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= _TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        if text.endswith("%"):
            return float(text.rstrip("%")) / 100
        return float(text)
    except ValueError:
        return None


def vqa_accuracy(
    prediction: str, answers: Sequence[str], *, profile: Profile = "standard"
) -> float:
    """VQA accuracy in per cent: over all sets that leave one person out, min(1, matches / 3).

    The scripts of 2023 normalize the prediction always and the people's answers only by
    punctuation, and only where those differ; the standard one (2021) normalizes all of them, and
    only where the people's answers differ.
    """
    check(profile)
    people = [_line(answer) for answer in answers]
    said, differ = _line(prediction), len(set(people)) > 1
    if profile == "qwen-2023" or differ:
        said = vqa_normalized(said)
    if differ:
        people = [vqa_punctuation(one) for one in people]
        if profile == "standard":
            people = [vqa_words(one) for one in people]
    scores = [
        min(1.0, sum(other == said for other in people[:i] + people[i + 1 :]) / _VQA_FULL)
        for i in range(len(people))
    ]
    return 100 * sum(scores) / len(scores) if scores else 0.0


def _line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_normalized(text: str) -> str:
    """Punctuation, then words: the whole of VQA's normalization."""
    return vqa_words(vqa_punctuation(text))


def vqa_punctuation(text: str) -> str:
    """Take punctuation out, or put a space in its place where it stands inside words."""
    out = text
    comma = _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or comma else " ")
    # the flag of the original call is a count: at most 32 full stops go
    return _FULL_STOP.sub("", out, count=32)


def vqa_words(text: str) -> str:
    """Lower case, digits for number words, no articles, apostrophes put back."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def check(profile: str) -> str:
    """Return a known profile.

    Raises:
        ValueError: it is none.
    """
    if profile not in ("standard", "qwen-2023"):
        raise ValueError(f"profile is {profile!r}, not 'standard' or 'qwen-2023'")
    return profile


def mean(values: Sequence[float]) -> float:
    """The mean of scores; not a number without any."""
    return sum(values) / len(values) if values else math.nan

"""BLEU, ROUGE-L and CIDEr of captions, as pycocoevalcap computes COCO's caption scores.

BLEU is of Papineni et al. 2002, ROUGE-L of Lin 2004, CIDEr of Vedantam et al. 2015 in the variant
that scoring servers use (CIDEr-D: clipped counts, a penalty on length). METEOR and SPICE are left
out: both are Java programs with data of their own, and an approximation under their name would be
compared with what it is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verification.answer_metrics import Profile, check, mean
from verification.caption_words import caption_words

_ORDERS = (1, 2, 3, 4)  # words in an n-gram
_TINY, _SMALL = 1e-15, 1e-9  # so that the shortest caption divides by something
_BETA = 1.2  # how much more recall counts than precision
_SIGMA = 6.0  # words
_CIDER_SCALE = 10.0

Words = Sequence[str]
Gram = tuple[str, ...]
Bleu = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ImageScores:
    """One caption's scores; its BLEU is shown, the corpus's is no mean of these."""

    bleu: Bleu
    rouge_l: float
    cider: float


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """BLEU-1 to -4 of the corpus, means of the others, and the captions' own in their order.

    CIDEr is as computed; published tables show 100 times as much.
    """

    bleu: Bleu
    rouge_l: float
    cider: float
    images: tuple[ImageScores, ...]

    def named(self) -> dict[str, float]:
        """The corpus's scores under pycocoevalcap's names."""
        bleu = {f"Bleu_{n}": score for n, score in zip(_ORDERS, self.bleu, strict=True)}
        return bleu | {"ROUGE_L": self.rouge_l, "CIDEr": self.cider}


def captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    profile: Profile = "standard",
) -> CaptionScores:
    """Score one caption per image against what people wrote about it. Both profiles agree.

    CIDEr weighs words by how few of these images they are about: it means something over a whole
    test set, and is zero for one image.

    Raises:
        ValueError: no image, one without references, lists that do not pair, unknown profile.
    """
    check(profile)
    cut = [[caption_words(text) for text in texts] for texts in references]
    return word_scores([caption_words(text) for text in candidates], cut)


def word_scores(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> CaptionScores:
    """Score captions that are already cut into words.

    Raises:
        ValueError: no image, one without references, or lists that do not pair.
    """
    pairs = list(zip(candidates, references, strict=True))
    if not pairs or not all(references):
        raise ValueError("caption scores need images, and every image references")
    counts = [_BleuCounts.of(words, texts) for words, texts in pairs]
    ciders = cider(candidates, references)
    images = tuple(
        ImageScores(count.score(), rouge_l(words, texts), weighed)
        for count, (words, texts), weighed in zip(counts, pairs, ciders, strict=True)
    )
    return CaptionScores(
        _BleuCounts.total(counts).score(),
        mean([image.rouge_l for image in images]),
        mean(ciders),
        images,
    )


def ngrams(words: Words, n: int) -> Counter[Gram]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


@dataclass(frozen=True, slots=True)
class _BleuCounts:
    """What BLEU adds up over a corpus before it divides."""

    length: int
    reference_length: int
    possible: tuple[int, ...]  # n-grams of the candidate, by order
    correct: tuple[int, ...]  # those that a reference has too

    @classmethod
    def of(cls, words: Words, texts: Sequence[Words]) -> _BleuCounts:
        length = len(words)
        # the reference of the closest length, the shorter of two
        closest = min((len(text) for text in texts), key=lambda other: (abs(other - length), other))
        possible = tuple(max(0, length - n + 1) for n in _ORDERS)
        return cls(length, closest, possible, tuple(_clipped(words, texts, n) for n in _ORDERS))

    @classmethod
    def total(cls, counts: Sequence[_BleuCounts]) -> _BleuCounts:
        return cls(
            sum(count.length for count in counts),
            sum(count.reference_length for count in counts),
            tuple(map(sum, zip(*(count.possible for count in counts), strict=True))),
            tuple(map(sum, zip(*(count.correct for count in counts), strict=True))),
        )

    def score(self) -> Bleu:
        """Geometric means of the precisions, times the penalty on what is too short."""
        ratio = (self.length + _TINY) / (self.reference_length + _SMALL)
        penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        product, scores = 1.0, []
        for n, correct, possible in zip(_ORDERS, self.correct, self.possible, strict=True):
            product *= (correct + _TINY) / (possible + _SMALL)
            scores.append(product ** (1 / n) * penalty)
        one, two, three, four = scores
        return one, two, three, four


def _clipped(words: Words, texts: Sequence[Words], n: int) -> int:
    """N-grams shared with the references, each counted as often as one reference has it."""
    most: Counter[Gram] = Counter()
    for text in texts:
        most |= ngrams(text, n)
    return (ngrams(words, n) & most).total()


def rouge_l(words: Words, texts: Sequence[Words]) -> float:
    """F-measure of the longest common subsequence: best precision and best recall of any text."""
    shared = [common_subsequence(words, text) for text in texts]
    if not any(shared):
        return 0.0
    precision = max(shared) / len(words)
    recall = max(same / len(text) for same, text in zip(shared, texts, strict=True) if text)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def common_subsequence(a: Words, b: Words) -> int:
    """Length of the longest sequence of words that both have in that order."""
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b, start=1):
            row.append(above[j - 1] + 1 if x == y else max(above[j], row[j - 1]))
    return row[-1]


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr of every caption, 0 … 10; a document is all that people wrote about one image."""
    images = math.log(len(references))
    seen = Counter(
        gram
        for texts in references
        for gram in {gram for text in texts for n in _ORDERS for gram in ngrams(text, n)}
    )

    def weigh(words: Words) -> _Weighed:
        return _Weighed.of(words, seen, images)

    return [
        _CIDER_SCALE * _likeness(weigh(words), [weigh(text) for text in texts])
        for words, texts in zip(candidates, references, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A text as one vector of tf-idf per order of n-grams."""

    vectors: tuple[Mapping[Gram, float], ...]
    norms: tuple[float, ...]
    length: int  # in words

    @classmethod
    def of(cls, words: Words, seen: Mapping[Gram, int], images: float) -> _Weighed:
        def vector(n: int) -> dict[Gram, float]:
            found = ngrams(words, n).items()
            return {gram: k * (images - math.log(max(1, seen.get(gram, 0)))) for gram, k in found}

        vectors = tuple(vector(n) for n in _ORDERS)
        norms = tuple(math.sqrt(sum(x * x for x in found.values())) for found in vectors)
        return cls(vectors, norms, len(words))


def _likeness(said: _Weighed, texts: Iterable[_Weighed]) -> float:
    """Mean over the texts and orders of the clipped cosine, less where the lengths differ."""
    return mean(
        [
            math.exp(-((said.length - text.length) ** 2) / (2 * _SIGMA**2))
            * mean([_clipped_cosine(said, text, order) for order in range(len(_ORDERS))])
            for text in texts
        ]
    )


def _clipped_cosine(said: _Weighed, text: _Weighed, order: int) -> float:
    norms = said.norms[order] * text.norms[order]
    if not norms:
        return 0.0
    wanted = text.vectors[order]
    shared = (
        min(x, wanted[gram]) * wanted[gram]
        for gram, x in said.vectors[order].items()
        if gram in wanted
    )
    return sum(shared) / norms

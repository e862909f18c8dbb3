"""Where an answer has to look: a second target for a few attention heads.

To tell an object's box, a model has to find the object by two properties at once; to count, it has
to spread its attention over all of a kind; to choose, it has to find the option that says what it
has seen. Nothing in the loss of the answers says so before it has been found, and that took longer
than anything else. So the training also tells some heads where to look: at cells of a picture, at
words of the question, or, where there is nothing to be found, at the row's first token. The heads
are the model's own; only this loss is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tiktoken
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name

from qwen_vl.scene_drawing import Box, Scene
from qwen_vl.scene_tasks import Question
from qwen_vl.scene_words import SIDES
from scripts.tiny_cells import CELLS, cells_of
from scripts.tiny_prompts import Asked


class Head(NamedTuple):
    """An attention head of the decoder, both counted from nought."""

    layer: int
    number: int


# what the head looks at, from which token
NAMED = Head(1, 0)  # the thing in the first picture, from the end of its name
NAMED_SECOND = Head(1, 1)  # the same in the second picture
# each thing counted and the row's first token, evenly, from the word for what is counted: already
# in the first layer, for a word that has seen the picture looks for the one thing that it found
COUNTED, AGAIN = Head(0, 2), Head(1, 2)
# what is told next: digits of a box, characters, names, a colour, a value; or the side asked about
TOLD = Head(2, 0)
ONE, OTHER = Head(2, 1), Head(2, 2)  # the two names of a relation, from where it is answered
KIND = Head(2, 3)  # the word for what is counted, from where the number is told
# where no word says what: all bars of a chart, all things in each of two pictures
ALL, ALL_SECOND = Head(2, 3), Head(2, 2)
_NUMBER = 1.0  # weight of how far the number is that the share at the first token tells
CHOSEN = Head(3, 0)  # the right option
PLACED = (NAMED, TOLD, ONE, OTHER)  # of these, what they brought has to tell a box
_READ = ("reading", "glyphs", "caption")  # questions whose answers tell what is printed


@dataclass(frozen=True, slots=True)
class Pointer:
    """A token of a question, and what it has to look at.

    `cells` are counted through all pictures, `tokens` in the question; the head may look at any of
    them. Without either it is the row's first token. `counted` are the cells of each thing that is
    counted: all things have to be looked at alike, at whichever of their cells, and the first token
    as much: how much is left there then tells their number. `box` and the number of a `side` in
    SIDES are what the token has to know when the head has looked.
    """

    place: int
    head: Head
    cells: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    counted: tuple[tuple[int, ...], ...] = ()
    box: Box | None = None
    side: int = -1

    @property
    def first(self) -> bool:
        """Whether the row's first token is among what it looks at."""
        return not (self.cells or self.tokens)


def pointers(
    asked: Asked, question: Question, scenes: Sequence[Scene], encoding: tiktoken.Encoding
) -> tuple[Pointer, ...]:
    """Find what a question's tokens are about.

    Args:
        asked: the question's turns and its answer as ids.
        question: what they were made of.
        scenes: the pictures.
        encoding: what made the ids.
    """
    text = _Text(asked, encoding)
    if question.kind == "comparison":
        return tuple(_compared(text, question, scenes))
    (scene,) = scenes
    found = [*_named(text, question, scene), *_told(text, question, scene)]
    if question.counts:
        counted = tuple(cells_of(box) for box in question.about)
        if question.sought:
            kind = text.last(question.sought)
            found += [Pointer(kind, head, counted=counted) for head in (COUNTED, AGAIN)]
            found.append(Pointer(text.asking, KIND, tokens=(kind,)))
        else:
            found.append(Pointer(text.asking, ALL, counted=counted))
    if question.kind == "relation":
        for head, box in zip((ONE, OTHER), question.about, strict=True):
            name = next(t.name(question.language) for t in scene.objects if t.box == box)
            found.append(Pointer(text.asking, head, tokens=(text.last(name),), box=box))
        for number, side in enumerate(SIDES.values()):
            word = side.word(question.language)
            if word in question.text:
                found.append(Pointer(text.asking, TOLD, tokens=(text.last(word),), side=number))
    if question.kind == "choice":
        found += _chosen(text, question)
    return tuple(found)


class _Text:
    """The question's turns as bytes, and which token each byte is in."""

    def __init__(self, asked: Asked, encoding: tiktoken.Encoding) -> None:
        pieces = [encoding.decode_single_token_bytes(one) for one in asked.ids]
        self._ends = np.cumsum([len(piece) for piece in pieces])
        self.whole = b"".join(pieces)
        learned = np.array(asked.learned)
        starts = np.flatnonzero(learned[1:] & ~learned[:-1])
        self.asking = int(starts[-1])  # the token that has to know how the answer begins
        self.answer = int(self._ends[self.asking])  # the answer's first byte

    def token(self, byte: int) -> int:
        return int(np.searchsorted(self._ends, byte, side="right"))

    def last(self, words: str) -> int:
        """The last token of the words, where they first are."""
        told = words.encode()
        return self.token(self.whole.index(told) + len(told) - 1)

    def places(self, words: str) -> Iterator[int]:
        """Where the words begin, every time, in bytes."""
        at = self.whole.find(words.encode())
        while at >= 0:
            yield at
            at = self.whole.find(words.encode(), at + 1)


def _named(text: _Text, question: Question, scene: Scene) -> Iterator[Pointer]:
    for thing in scene.objects:
        name = thing.name(question.language)
        for at in text.places(name):
            last = text.token(at + len(name.encode()) - 1)
            yield Pointer(last, NAMED, cells_of(thing.box), box=thing.box)
    if question.kind == "presence" and not question.about:
        yield Pointer(text.last(question.sought), NAMED)


def _told(text: _Text, question: Question, scene: Scene) -> Iterator[Pointer]:
    if question.box is not None:
        cells, start = cells_of(question.box), text.whole.rindex(b"<box>")
        for at in range(start, len(text.whole)):
            if text.whole[at : at + 1].isdigit():
                yield Pointer(text.token(at) - 1, TOLD, cells, box=question.box)
    elif question.kind in ("caption", "region"):
        yield from _names_told(text, question, scene)
    elif len(question.about) == 1 and not question.counts:
        yield Pointer(text.asking, TOLD, cells_of(question.about[0]))
    if question.kind in _READ and scene.printed and scene.printed.text in question.answer:
        start = text.whole.rindex(scene.printed.text.encode())
        for number, box in enumerate(scene.printed.boxes):
            byte = start + len(scene.printed.text[:number].encode())
            yield Pointer(text.token(byte) - 1, TOLD, cells_of(box, wide=True))


def _names_told(text: _Text, question: Question, scene: Scene) -> Iterator[Pointer]:
    """What a name in an answer is of: the token before each of its tokens has to see it."""
    for thing in scene.objects:
        name = thing.name(question.language)
        for at in text.places(name):
            if at >= text.answer:
                tokens = {text.token(byte) for byte in range(at, at + len(name.encode()))}
                for token in sorted(tokens):
                    yield Pointer(token - 1, TOLD, cells_of(thing.box))


def _chosen(text: _Text, question: Question) -> Iterator[Pointer]:
    right = question.choices["ABCD".index(question.answer)]
    line = f"{question.answer}. {right}"
    if line.encode() in text.whole:
        yield Pointer(text.asking, CHOSEN, tokens=(text.last(line),))


def _compared(text: _Text, question: Question, scenes: Sequence[Scene]) -> Iterator[Pointer]:
    heads = ((NAMED, ALL), (NAMED_SECOND, ALL_SECOND))
    for number, (scene, (named, counted)) in enumerate(zip(scenes, heads, strict=True)):
        before = number * CELLS
        if not question.sought:
            things = (cells_of(thing.box) for thing in scene.objects)
            cells = tuple(tuple(before + cell for cell in thing) for thing in things)
            yield Pointer(text.asking, counted, counted=cells)
            continue
        shown = [
            t.box for t in scene.objects if t.name(question.language).endswith(question.sought)
        ]
        found = {before + cell for box in shown for cell in cells_of(box)}
        yield Pointer(text.last(question.sought), named, tuple(sorted(found)))


@dataclass(frozen=True, slots=True)
class Looks:
    """The pointers of a batch that one layer answers for."""

    heads: Tensor  # (P,)
    rows: Tensor  # (P,)
    offsets: Tensor  # (P,) of the token in its row
    keys: Tensor  # (P, length): of what it has to look at evenly the number, from 1 on; else 0
    tokens: Tensor  # (P,) of the token in the batch
    edges: Tensor  # (P, 4) of the box to know, in [0, 1); -1 where there is none
    sides: Tensor  # (P,) the side to know, or -1

    def losses(self, q: Tensor, k: Tensor, mask: Tensor) -> dict[int, Tensor]:
        """For each head the mean of what its pointers miss.

        A pointer to one thing misses −log(share of the attention that lies on it); one to n, the
        mean of −log(share · n), which is nought when even. A pointer that counts, whose first thing
        is the row's first token, also misses _NUMBER · log(told / true)² of the number 1 / s − 1
        that its share s there tells, but no steeper than where it is e times the true one.

        Args:
            q: (rows, heads, length, width), padded.
            k: as `q`.
            mask: (rows, 1, length, length): what each token may look at.
        """
        found = {}
        for head in sorted(set(self.heads.tolist())):
            mine = self.heads == head
            rows, offsets, keys = self.rows[mine], self.offsets[mine], self.keys[mine]
            scores = (q[:, head] @ k[:, head].mT)[rows, offsets] * q.shape[-1] ** -0.5
            scores = scores.masked_fill(~mask[rows, 0, offsets], -torch.inf)
            count = keys.amax(1)
            numbers = torch.arange(1, int(count.max()) + 1)
            others = keys[..., None] != numbers  # (P, length, things)
            seen = scores[..., None].masked_fill(others, -torch.inf).logsumexp(1)
            seen = seen.masked_fill(numbers > count[:, None], 0.0).sum(1) / count
            told = scores[:, 1:].logsumexp(1) - scores[:, 0]
            apart = torch.where(count > 1, told - (count - 1).clamp(min=1).log(), 0.0)
            missed = scores.logsumexp(1) - seen - count.log() + _NUMBER * _bounded(apart)
            found[head] = missed.mean()
        return found


def _bounded(apart: Tensor) -> Tensor:
    return 2 * F.huber_loss(apart, torch.zeros_like(apart), reduction="none")


def looks_of(batch: dict[str, Tensor], layer: int) -> Looks | None:
    """The pointers that `layer` answers for, or None."""
    mine = batch["pointer_layers"] == layer
    if not bool(mine.any()):
        return None
    tokens = batch["pointer_tokens"][mine]
    return Looks(batch["pointer_heads"][mine], batch["rows"][tokens], batch["offsets"][tokens],
                 batch["pointer_keys"][mine], tokens,
                 batch["pointer_edges"][mine], batch["pointer_sides"][mine])  # fmt: skip

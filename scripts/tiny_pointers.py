"""Where in a picture an answer has to look: a second target for two attention heads.

To tell an object's box, a model has to find the object by two properties at once, and nothing in
the loss says so before it has been found: from answers alone this took longer than anything else.
So the training also asks two heads to look there: one of the second layer where a question has
named an object, one of the third layer where a coordinate or a printed character is told. The heads
are the model's own; only this loss is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen_vl.scene_drawing import Box, Scene
from qwen_vl.scene_tasks import Question
from scripts.tiny_cells import CELLS, cells_of

NAMED, TOLD = 1, 2  # the layer whose first head looks
_SHOWN_IN_ANSWER = ("grounding", "dialogue")


@dataclass(frozen=True, slots=True)
class Pointer:
    """A token of a question, and the cells that it is about."""

    place: int
    layer: int
    cells: tuple[int, ...]


def pointers(
    ids: Sequence[int], question: Question, scene: Scene, encoding: tiktoken.Encoding
) -> tuple[Pointer, ...]:
    """Find what a question's tokens are about.

    Args:
        ids: the question's turns and its answer.
        question: what they were made of.
        scene: what it is about.
        encoding: what made the ids.
    """
    pieces = [encoding.decode_single_token_bytes(one) for one in ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    whole = b"".join(pieces)
    found = [*_named(whole, ends, question, scene), *_boxes(whole, ends, question)]
    if question.kind == "reading" and scene.printed:
        found += _characters(whole, ends, question.answer, scene.printed.boxes)
    return tuple(found)


def _named(
    whole: bytes, ends: NDArray[np.int64], question: Question, scene: Scene
) -> Iterator[Pointer]:
    for thing in scene.objects:
        name = thing.name(question.language).encode()
        at = whole.find(name)
        while at >= 0:
            yield Pointer(_token(ends, at + len(name) - 1), NAMED, cells_of(thing.box))
            at = whole.find(name, at + 1)


def _boxes(whole: bytes, ends: NDArray[np.int64], question: Question) -> Iterator[Pointer]:
    """Each digit of a told box; the token before a digit is what has to know it."""
    if question.box is None or question.kind not in _SHOWN_IN_ANSWER:
        return
    start = whole.rfind(b"<box>")
    for at in range(start, len(whole)):
        if whole[at : at + 1].isdigit():
            yield Pointer(_token(ends, at) - 1, TOLD, cells_of(question.box))


def _characters(
    whole: bytes, ends: NDArray[np.int64], text: str, boxes: Sequence[Box]
) -> Iterator[Pointer]:
    start = whole.rfind(text.encode())
    for number, box in enumerate(boxes):
        yield Pointer(_token(ends, start + number) - 1, TOLD, cells_of(box, wide=True))


def _token(ends: NDArray[np.int64], byte: int) -> int:
    return int(np.searchsorted(ends, byte, side="right"))


def as_masks(found: Sequence[Pointer]) -> NDArray[np.bool_]:
    """(pointers, 64): which cells each is about."""
    masks = np.zeros((len(found), CELLS), bool)
    for mask, pointer in zip(masks, found, strict=True):
        mask[list(pointer.cells)] = True
    return masks


@dataclass(frozen=True, slots=True)
class Looks:
    """The pointers of a batch that one layer's first head answers for."""

    tokens: Tensor  # (P,) in the flat batch
    rows: Tensor  # (P,)
    visual: Tensor  # (P,) place of the row's first visual token in the row
    cells: Tensor  # (P, 64)

    def loss(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        """Mean of −log(share of the head's attention that lies on the cells).

        Args:
            q: (N, width) of all tokens.
            k: (rows, length, width), padded.
            mask: (P, length) of the keys that each may look at.
        """
        scores = (k[self.rows] @ q[self.tokens][:, :, None])[..., 0] * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask, -torch.inf)
        seen = self.visual[:, None] + torch.arange(CELLS)
        on = scores.gather(1, seen).masked_fill(~self.cells, -torch.inf)
        missed: Tensor = (scores.logsumexp(1) - on.logsumexp(1)).mean()
        return missed


def looks_of(batch: dict[str, Tensor], layer: int) -> Looks | None:
    """The pointers that `layer` answers for, or None."""
    mine = batch["pointer_layers"] == layer
    if not bool(mine.any()):
        return None
    tokens = batch["pointer_tokens"][mine]
    return Looks(tokens, batch["rows"][tokens], batch["pointer_visual"][mine],
                 batch["pointer_cells"][mine])  # fmt: skip

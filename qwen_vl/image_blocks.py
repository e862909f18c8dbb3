"""Where image rows go: strictly between an image's start and end token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen_vl.errors import ImageBlockError


@dataclass(frozen=True, slots=True)
class BlockTokens:
    """How an image block looks in the ids; what lies inside is path bytes or padding."""

    start: int
    end: int
    rows: int  # places between them


def image_places(input_ids: Tensor, tokens: BlockTokens, *, images: int) -> tuple[Tensor, Tensor]:
    """Find the places of every image, in reading order over the rows of the batch.

    A start token at the very end, without room for a block, is text: a model may write one.

    Returns:
        Row and column indices, each (images, tokens.rows).

    Raises:
        ImageBlockError: a block of another length, or more or fewer blocks than images.
    """
    starts = (input_ids == tokens.start).nonzero()
    rows, columns = starts[:, 0], starts[:, 1]
    closing = columns + tokens.rows + 1
    fits = closing < input_ids.shape[1]
    closed = fits & (input_ids[rows, closing.clamp(max=input_ids.shape[1] - 1)] == tokens.end)
    _check_open_blocks(input_ids, starts[~closed], tokens)
    rows, columns = rows[closed], columns[closed]
    if len(rows) != images:
        raise ImageBlockError(
            f"the ids hold {len(rows)} image blocks, and pixel_values {images} images",
            hint="Pass one picture for each <img>…</img>, in reading order.",
        )
    places = columns[:, None] + torch.arange(1, tokens.rows + 1, device=input_ids.device)
    return rows[:, None].expand_as(places), places


def _check_open_blocks(input_ids: Tensor, starts: Tensor, tokens: BlockTokens) -> None:
    for row, column in starts.tolist():
        ends = (input_ids[row, column:] == tokens.end).nonzero()
        room = input_ids.shape[1] - column - 1
        if len(ends) or room > tokens.rows:
            places = f"{int(ends[0]) - 1}" if len(ends) else "an unclosed run of"
            raise ImageBlockError(
                f"row {row}: the image block at position {column} has {places} places, "
                f"and an image makes {tokens.rows} rows"
            )

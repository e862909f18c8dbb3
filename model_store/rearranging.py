"""Split and fuse tensors without reading them: every byte is fetched when it is asked for.

A fused tensor is blocks of its parts by turns, as a table of (blocks, parts, block bytes): rows of
q, then of k, then of v (one block each), the same per head, or a few columns of every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_store.tensor_sources import CHUNK, TensorSource
from model_store.tensors import RawTensor

_DIRECT = 8192  # bytes: blocks from here on are read one by one, smaller ones many at once


@dataclass(frozen=True, slots=True)
class Part:
    """Every `parts`-th block of a tensor, from block `index` on."""

    whole: TensorSource
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: int
    index: int
    block: int  # bytes

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the part's bytes from `start` on."""
        if self.block < _DIRECT:
            self._gather(buffer, start)
            return
        done = 0
        while done < len(buffer):
            number, offset = divmod(start + done, self.block)
            size = min(self.block - offset, len(buffer) - done)
            place = (number * self.parts + self.index) * self.block + offset
            self.whole.read_into(buffer[done : done + size], place)
            done += size

    def _gather(self, buffer: memoryview, start: int) -> None:
        stride = self.parts * self.block
        many = max(CHUNK // stride, 1)
        done = 0
        while done < len(buffer):
            first, offset = divmod(start + done, self.block)
            count = min(-(-(offset + len(buffer) - done) // self.block), many)
            scratch = np.empty(count * stride, np.uint8)
            self.whole.read_into(scratch.data, first * stride)
            ours = scratch.reshape(count, self.parts, self.block)[:, self.index].reshape(-1)
            size = min(count * self.block - offset, len(buffer) - done)
            buffer[done : done + size] = ours[offset : offset + size].data
            done += size


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Blocks of several equal tensors by turns: what `Part` takes apart."""

    parts: tuple[TensorSource, ...]
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    block: int  # bytes

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the fused tensor's bytes from `start` on."""
        if self.block < _DIRECT:
            self._gather(buffer, start)
            return
        done = 0
        while done < len(buffer):
            number, offset = divmod(start + done, self.block)
            row, index = divmod(number, len(self.parts))
            size = min(self.block - offset, len(buffer) - done)
            place = row * self.block + offset
            self.parts[index].read_into(buffer[done : done + size], place)
            done += size

    def _gather(self, buffer: memoryview, start: int) -> None:
        stride = len(self.parts) * self.block
        many = max(CHUNK // stride, 1)
        done = 0
        while done < len(buffer):
            first, offset = divmod(start + done, stride)
            count = min(-(-(offset + len(buffer) - done) // stride), many)
            scratch = np.empty((count, len(self.parts), self.block), np.uint8)
            for index, part in enumerate(self.parts):
                piece = np.empty(count * self.block, np.uint8)
                part.read_into(piece.data, first * self.block)
                scratch[:, index] = piece.reshape(count, self.block)
            size = min(count * stride - offset, len(buffer) - done)
            buffer[done : done + size] = scratch.reshape(-1)[offset : offset + size].data
            done += size


def taken_apart(
    whole: TensorSource, shape: tuple[int, ...], *, parts: int, blocks: int
) -> list[TensorSource]:
    """Return the parts, of `shape` each, of a tensor that holds `blocks` blocks of every part."""
    size = whole.nbytes // parts
    if isinstance(whole, RawTensor) and blocks == 1:  # neighbours: no byte needs to be moved
        data = whole.data.cast("B") if size else memoryview(b"")
        return [
            RawTensor(whole.dtype, shape, data[size * index : size * (index + 1)])
            for index in range(parts)
        ]
    block = size // max(blocks, 1)
    return [Part(whole, whole.dtype, shape, size, parts, n, block) for n in range(parts)]


def put_together(
    parts: Sequence[TensorSource], shape: tuple[int, ...], *, blocks: int
) -> TensorSource:
    """Fuse equal tensors into one of `shape`, `blocks` blocks of each by turns."""
    size = parts[0].nbytes
    block = size // max(blocks, 1)
    return Interleaved(tuple(parts), parts[0].dtype, shape, size * len(parts), block)

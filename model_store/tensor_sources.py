"""Tensors that are not in memory yet: where their bytes are, read a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model_store.strided import StridedTensor
from model_store.tensors import RawTensor, TensorInfo
from model_store.weight_file import WeightFile

CHUNK = 1 << 20  # a multiple of every element's size


class TensorSource(Protocol):
    """A tensor whose row-major bytes can be asked for by their place; a `RawTensor` is one."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies in one piece in an open file."""

    file: WeightFile
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return TensorInfo(self.dtype, self.shape).nbytes

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Read from the file; see `WeightFile.read_into`."""
        self.file.read_into(buffer, self.start + start)


def in_memory(source: TensorSource) -> RawTensor:
    """Read a tensor whole; one that is in memory already stays where it is."""
    if isinstance(source, RawTensor):
        return source
    if isinstance(source, StridedTensor):
        return source.gather()
    data = np.empty(source.nbytes, np.uint8).data
    if source.nbytes:
        source.read_into(data, 0)
    return RawTensor(source.dtype, source.shape, data)


def pieces(source: TensorSource, *, size: int = CHUNK) -> Iterator[memoryview]:
    """Read a tensor from front to back; a piece is good until the next one is asked for."""
    if isinstance(source, RawTensor):
        data = source.data.cast("B") if source.nbytes else memoryview(b"")
        yield from (data[start : start + size] for start in range(0, len(data), size))
        return
    buffer = memoryview(bytearray(min(size, source.nbytes)))
    for start in range(0, source.nbytes, size):
        piece = buffer[: source.nbytes - start]
        source.read_into(piece, start)
        yield piece


def same_bytes(one: TensorSource, other: TensorSource) -> bool:
    """Whether two tensors agree in dtype, shape and every byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(mine == yours for mine, yours in zip(pieces(one), pieces(other), strict=True))


def is_zero(source: TensorSource) -> bool:
    """Whether every byte is 0."""
    return not any(np.frombuffer(piece, np.uint8).any() for piece in pieces(source))

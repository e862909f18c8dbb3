"""Gather the elements of a strided view of a file into row-major order, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.tensors import ITEM_SIZE, RawTensor, TensorInfo, from_bits
from model_store.weight_file import WeightFile

_SPAN = 16 << 20  # bytes from the first to the last element that are read at once
_ELEMENTS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

_Array = NDArray[np.unsignedinteger[Any]]


class StridedTensor:
    """A transposed or sliced view; it is gathered whole when the first byte is asked for."""

    def __init__(
        self, file: WeightFile, start: int, info: TensorInfo, strides: tuple[int, ...]
    ) -> None:
        """Note where the view lies; `strides` are in elements, and no dimension is 0."""
        self.dtype, self.shape, self.nbytes = info.dtype, info.shape, info.nbytes
        self._file, self._start, self._strides = file, start, strides
        self._whole: RawTensor | None = None

    def gather(self) -> RawTensor:
        """Read the view; beside it one span of the file is in memory, however far it reaches."""
        if self._whole is None:
            size = ITEM_SIZE[self.dtype]
            made: _Array = np.empty(self.shape, _ELEMENTS[size])
            _fill(made, self._file, self._start, tuple(n * size for n in self._strides))
            self._whole = from_bits(self.dtype, made)
        return self._whole

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the row-major bytes from `start` on."""
        self.gather().read_into(buffer, start)


def _fill(made: _Array, file: WeightFile, start: int, strides: tuple[int, ...]) -> None:
    reach = [(n - 1) * stride for n, stride in zip(made.shape, strides, strict=True)]
    span = sum(reach) + made.itemsize
    if span <= _SPAN or made.size == 1:
        elements = np.frombuffer(file.copy(start, start + span), dtype=made.dtype)
        made[...] = np.lib.stride_tricks.as_strided(elements, made.shape, strides, writeable=False)
        return
    axis = max(range(len(reach)), key=reach.__getitem__)
    half = made.shape[axis] // 2
    head = [slice(None)] * axis
    _fill(made[(*head, slice(None, half))], file, start, strides)
    _fill(made[(*head, slice(half, None))], file, start + half * strides[axis], strides)

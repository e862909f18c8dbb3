"""A tensor that is computed a few rows at a time, while it is written."""

from __future__ import annotations

from collections.abc import Callable

from model_store.tensors import TensorInfo
from model_store.weight_rules import TensorSpec

Make = Callable[[int, int], memoryview]  # first and last + 1 of the units -> their bytes


class MadeTensor:
    """Bytes that a function makes; asked for from front to back, each is made once.

    A unit is what the function counts in: a row, or an element. A few of them are in memory.
    """

    def __init__(self, spec: TensorSpec, *, units: int, at_once: int, make: Make) -> None:
        """Note what is to be made: `units` equal pieces, `at_once` of them per call."""
        self.dtype, self.shape = spec.dtype, spec.shape
        self.nbytes = TensorInfo(spec.dtype, spec.shape).nbytes
        self._units, self._at_once, self._make = units, max(at_once, 1), make
        self._group, self._made = -1, memoryview(b"")

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on."""
        size = self.nbytes // self._units * self._at_once  # bytes of a full group
        done = 0
        while done < len(buffer):
            group, offset = divmod(start + done, size)
            if group != self._group:
                self._made = memoryview(b"")  # the old one goes before the new one comes
                first = group * self._at_once
                last = min(first + self._at_once, self._units)
                self._made, self._group = self._make(first, last), group
            piece = self._made[offset : offset + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)

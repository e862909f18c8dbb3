"""Count NaN and infinity in tensors: allowed in a checkpoint, and worth knowing of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_store.tensor_sources import TensorSource, pieces
from model_store.tensors import ITEM_SIZE

# dtype -> (all bits but the sign, the least pattern that is not finite, the one of infinity)
_PATTERNS = {
    "F64": (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF0000000000000),
    "F32": (0x7FFFFFFF, 0x7F800000, 0x7F800000),
    "F16": (0x7FFF, 0x7C00, 0x7C00),
    "BF16": (0x7FFF, 0x7F80, 0x7F80),
    "F8_E5M2": (0x7F, 0x7C, 0x7C),
    "F8_E4M3": (0x7F, 0x7F, None),  # has NaN only
}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True)
class NonFinite:
    """How many elements of a tensor are no number, or infinite."""

    nan: int
    infinite: int

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite)


class NonFiniteCounter:
    """Counts by bit pattern while a tensor's bytes go by; integers and booleans have none."""

    def __init__(self, dtype: str) -> None:
        self._patterns = _PATTERNS.get(dtype)
        self._unsigned = _UNSIGNED[ITEM_SIZE[dtype]]
        self._nan = self._infinite = 0

    def update(self, piece: memoryview) -> None:
        """Look at whole elements."""
        if self._patterns is None or not len(piece):
            return
        mask, first, infinity = self._patterns
        bits = np.frombuffer(piece, self._unsigned)
        magnitudes = bits & self._unsigned(mask)
        if magnitudes.max() < first:  # the ordinary case: two passes at the speed of memory
            return
        special = magnitudes[magnitudes >= first]
        infinite = 0 if infinity is None else int(np.count_nonzero(special == infinity))
        self._infinite += infinite
        self._nan += special.size - infinite

    @property
    def found(self) -> NonFinite:
        """What went by so far."""
        return NonFinite(self._nan, self._infinite)


def count_nonfinite(tensor: TensorSource) -> NonFinite:
    """Read a tensor, a piece at a time, and count."""
    counter = NonFiniteCounter(tensor.dtype)
    for piece in pieces(tensor):
        counter.update(piece)
    return counter.found

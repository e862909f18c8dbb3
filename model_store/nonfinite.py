"""Count NaN and infinity in tensors: allowed in a checkpoint, and worth knowing of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_store.tensors import ITEM_SIZE, RawTensor

# dtype -> (mask of the exponent, mask of the mantissa)
_MASKS = {
    "F64": (0x7FF0000000000000, 0x000FFFFFFFFFFFFF),
    "F32": (0x7F800000, 0x007FFFFF),
    "F16": (0x7C00, 0x03FF),
    "BF16": (0x7F80, 0x007F),
    "F8_E5M2": (0x7C, 0x03),
}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_CHUNK = 1 << 22  # bytes looked at at once


@dataclass(frozen=True, slots=True)
class NonFinite:
    """How many elements of a tensor are no number, or infinite."""

    nan: int
    infinite: int

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite)


def count_nonfinite(tensor: RawTensor) -> NonFinite:
    """Count by bit pattern; integers and booleans have none, F8_E4M3 has NaN only."""
    if tensor.dtype not in _MASKS and tensor.dtype != "F8_E4M3":
        return NonFinite(0, 0)
    data = tensor.data.cast("B") if tensor.nbytes else memoryview(b"")
    nan = infinite = 0
    for start in range(0, len(data), _CHUNK):
        piece = data[start : start + _CHUNK]
        bits = np.frombuffer(piece, dtype=_UNSIGNED[ITEM_SIZE[tensor.dtype]])
        if tensor.dtype == "F8_E4M3":
            nan += int(np.count_nonzero((bits & 0x7F) == 0x7F))
            continue
        exponent, mantissa = (bits.dtype.type(mask) for mask in _MASKS[tensor.dtype])
        special = bits[(bits & exponent) == exponent]
        infinite += int(np.count_nonzero((special & mantissa) == 0))
        nan += int(np.count_nonzero(special & mantissa))
    return NonFinite(nan, infinite)

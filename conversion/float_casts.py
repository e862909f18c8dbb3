"""Casts between float32, bfloat16 and float16 on bit patterns, the same on every machine.

Values round to nearest, ties to even, subnormals included, as torch's `.to()` does; too large ones
become infinite and are counted. A NaN stays one: sign and upper payload bits are kept, the quiet
bit is set; widening bfloat16 moves bits only. Torch has no one rule here (its vector code makes
0xffff of every float32 NaN, its scalar code 0x7fc0), so equality with it is over numbers and over
the NaNs whose fate does not depend on their place in the tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.tensors import RawTensor, from_bits

FLOAT_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
CASTABLE = frozenset(FLOAT_NAMES.values())
AT_ONCE = 1 << 18  # elements: what a chunk needs stays in the processor's cache
_LARGEST = {"BF16": 3.3895313e38, "F16": 65504.0}

_Bits = NDArray[np.unsignedinteger[Any]]
_Floats = NDArray[np.float32]


def cast(tensor: RawTensor, dtype: str) -> tuple[RawTensor, int]:
    """Return a tensor in another float dtype, and how many finite values became infinite.

    The intermediate values of one chunk at a time are in memory, beside the result.

    Args:
        tensor: F32, BF16 or F16.
        dtype: one of them.
    """
    if tensor.dtype == dtype:
        return tensor, 0
    source = tensor.bits().reshape(-1)
    made: _Bits = np.empty(source.size, np.uint32 if dtype == "F32" else np.uint16)
    overflowed = 0
    for start in range(0, source.size, AT_ONCE):
        chunk, into = source[start : start + AT_ONCE], made[start : start + AT_ONCE]
        if (tensor.dtype, dtype) == ("BF16", "F32"):
            into[:] = chunk
            into <<= 16
        else:
            overflowed += narrow(widen(chunk, tensor.dtype), dtype, into=into)
    return from_bits(dtype, made.reshape(tensor.shape)), overflowed


def widen(bits: _Bits, dtype: str) -> _Floats:
    """Return bit patterns of a float dtype as float32, exactly."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    values = bits.view(np.float16).astype(np.float32)
    nans = (bits & 0x7FFF) > 0x7C00
    if nans.any():
        odd = bits[nans].astype(np.uint32)
        values.view(np.uint32)[nans] = (odd & 0x8000) << 16 | 0x7FC00000 | (odd & 0x3FF) << 13
    return values


def narrow(values: _Floats, dtype: str, *, into: _Bits) -> int:
    """Round float32 values to bit patterns of a float dtype; returns how many overflowed."""
    bits = values.view(np.uint32)
    if dtype == "F32":
        into[:] = bits
        return 0
    if dtype == "BF16":
        _to_bfloat16(bits, into)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            into.view(np.float16)[:] = values
    return _mend(values, dtype, into)


def _to_bfloat16(bits: _Bits, into: _Bits) -> None:
    # half a unit of the last place, less one where the last bit is even: ties go to even
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    into[:] = rounded


def _mend(values: _Floats, dtype: str, into: _Bits) -> int:
    """Write the NaNs by our rule, and count new infinities; ordinary chunks cost two scans."""
    with np.errstate(invalid="ignore"):
        low, high = values.min(), values.max()  # NaN when there is one
    if -_LARGEST[dtype] <= low and high <= _LARGEST[dtype]:
        return 0
    nans = np.isnan(values)
    bits = values.view(np.uint32)[nans]
    if dtype == "BF16":
        into[nans] = bits >> 16 | 0x40
        infinite = (into & 0x7FFF) == 0x7F80
    else:
        into[nans] = (bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF)
        infinite = (into & 0x7FFF) == 0x7C00
    return int(np.count_nonzero(infinite & np.isfinite(values)))

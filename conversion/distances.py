"""How far apart two tensors' numbers are, of any two dtypes, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.float_casts import CASTABLE, widen
from model_store.tensor_sources import TensorSource, pieces
from model_store.tensors import ITEM_SIZE, RawTensor

_CHUNK = 1 << 20  # elements whose float64 differences are in memory at once
_INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
Numbers = NDArray[np.float64]


def element_pairs(
    reference: TensorSource, candidate: TensorSource
) -> Iterator[tuple[RawTensor, RawTensor]]:
    """Read two tensors of one shape side by side, the same few elements of both at a time."""
    sides = [
        _flat(tensor, size=_CHUNK * ITEM_SIZE[tensor.dtype]) for tensor in (reference, candidate)
    ]
    return zip(*sides, strict=True)


def _flat(tensor: TensorSource, *, size: int) -> Iterator[RawTensor]:
    for piece in pieces(tensor, size=size):
        yield RawTensor(tensor.dtype, (len(piece) // ITEM_SIZE[tensor.dtype],), piece)


def distances(
    reference: TensorSource, candidate: TensorSource
) -> tuple[float | None, float | None]:
    """Largest and mean absolute difference; None where NaN or infinity leave no number."""
    largest, total, count = 0.0, 0.0, 0
    for gaps in _gaps(reference, candidate):
        if not np.isfinite(gaps).all():
            return None, None
        largest, total = max(largest, float(gaps.max())), total + float(gaps.sum())
        count += gaps.size
    if count == 0:
        return 0.0, 0.0
    mean = total / count
    return (largest, mean) if np.isfinite([largest, mean]).all() else (None, None)


def differing_numbers(reference: TensorSource, candidate: TensorSource) -> int:
    """How many numbers differ, whatever their dtypes; NaN is like NaN."""
    differing = 0
    for pair in element_pairs(reference, candidate):
        ours, theirs = map(_numbers, pair)
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        differing += int(np.count_nonzero(~same))
    return differing


def _gaps(reference: TensorSource, candidate: TensorSource) -> Iterator[Numbers]:
    whole = reference.dtype == candidate.dtype and reference.dtype in _INTEGERS
    with np.errstate(invalid="ignore", over="ignore"):
        for ours, theirs in element_pairs(reference, candidate):
            yield _whole_gaps(ours, theirs) if whole else np.abs(_numbers(ours) - _numbers(theirs))


def _whole_gaps(reference: RawTensor, candidate: RawTensor) -> Numbers:
    """Integers' gaps, exact beyond what float64 tells apart: 2**60 and 2**60 + 1 differ by 1."""
    pair: Any = (reference.values(), candidate.values())
    width = reference.bits().dtype
    high, low = np.maximum(*pair), np.minimum(*pair)
    # wrapping subtraction of the bit patterns is the distance, without overflow
    gaps: Numbers = (high.view(width) - low.view(width)).astype(np.float64)
    return gaps


def _numbers(tensor: RawTensor) -> Numbers:
    numbers: Numbers
    if tensor.dtype in CASTABLE:
        numbers = widen(tensor.bits(), tensor.dtype).astype(np.float64)
    elif tensor.dtype in _EIGHT_BITS:
        numbers = _EIGHT_BITS[tensor.dtype][tensor.bits()]
    else:
        numbers = tensor.values().astype(np.float64)
    return numbers


def _e5m2() -> Numbers:
    # the upper half of a float16
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float64)


def _e4m3() -> Numbers:
    """OCP's E4M3: no infinity, NaN where all bits but the sign are set, bias 7."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0))
    size[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -size, size)


_EIGHT_BITS = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}

"""RawTensor: one tensor's bytes, shape and dtype, without any framework."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.errors import CheckpointError
from model_store.manifest import TensorDigest

# safetensors' dtype names -> bytes per element
ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_INTEGERS = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's dtype (safetensors' name for it) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_SIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Row-major little-endian bytes of one tensor, in memory."""

    dtype: str  # safetensors' name, for example "BF16"
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_SIZE:
            raise CheckpointError(f"unknown tensor dtype {self.dtype!r}")
        if self.data.nbytes != self.nbytes:
            raise CheckpointError(
                f"{self.data.nbytes} bytes do not make a {self.dtype} tensor of {self.shape}"
            )

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on."""
        buffer[:] = self.data.cast("B")[start : start + len(buffer)]

    def bits(self) -> NDArray[np.unsignedinteger]:
        """The elements as unsigned integers of their width: moves bytes, never values."""
        kind = _BITS[ITEM_SIZE[self.dtype]]
        return np.frombuffer(self.data, dtype=kind).reshape(self.shape)

    def values(self) -> NDArray[np.generic]:
        """The elements as numpy numbers; bf16 is widened to float32, exactly.

        Raises:
            CheckpointError: an 8-bit float, which numpy cannot hold.
        """
        if self.dtype == "BF16":
            return (self.bits().astype(np.uint32) << 16).view(np.float32)
        kind = _FLOATS.get(self.dtype) or _INTEGERS.get(self.dtype)
        if kind is None:
            raise CheckpointError(f"numpy has no {self.dtype}")
        return np.frombuffer(self.data, dtype=kind).reshape(self.shape)

    def digest(self) -> TensorDigest:
        return TensorDigest(self.dtype, self.shape, hashlib.sha256(self.data).hexdigest())


def from_bits(dtype: str, array: NDArray[np.generic]) -> RawTensor:
    """Wrap an array's bytes as a tensor of `dtype`; a non-contiguous array is copied."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return RawTensor(dtype, array.shape, flat.data if flat.size else memoryview(b""))

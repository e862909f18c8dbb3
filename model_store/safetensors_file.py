"""Safetensors files: a validated header, and where every tensor lies.

Specification: https://github.com/huggingface/safetensors, section "Format". Stricter than the
reference reader where two readers could disagree: equal keys, unknown fields, leading spaces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.canonical import parse_json
from model_store.errors import CheckpointError, StoreError, UnsafeCheckpointError
from model_store.tensor_names import name_problem
from model_store.tensor_sources import StoredTensor, in_memory
from model_store.tensors import ITEM_SIZE, RawTensor, TensorInfo
from model_store.weight_file import WeightFile, wrong_kind

# the specification allows 100 MB; parsed, that would be a gigabyte of small objects
MAX_HEADER = 32_000_000
MAX_CONTAINERS = 250_000  # JSON objects and lists in a header; a tensor has three
_MAX_DIMENSIONS = 64
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class _Place:
    info: TensorInfo
    start: int  # in the file
    stop: int


class SafetensorsFile:
    """One safetensors file, its header checked completely before the first tensor is read."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its header.

        Raises:
            CheckpointError: not a safetensors file, or a truncated one.
            UnsafeCheckpointError: the header lies about the data.
        """
        self.path = path
        self._file = WeightFile(path)
        try:
            header, data_start = _header(self._file)
            self.metadata = _metadata(header.pop("__metadata__", {}), path)
            self._places = _places(header, data_start, self._file.size, path)
        except BaseException:
            self._file.close()
            raise

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> dtype and shape, in the order of the data."""
        return {name: place.info for name, place in self._places.items()}

    def source(self, name: str) -> StoredTensor:
        place = self._places[name]
        return StoredTensor(self._file, place.start, place.info.dtype, place.info.shape)

    def read(self, name: str) -> RawTensor:
        """Read a tensor into memory of its own."""
        return in_memory(self.source(name))

    def check_sums(self) -> None:
        """The format has none."""

    def close(self) -> None:
        self._file.close()


def _header(file: WeightFile) -> tuple[dict[str, Any], int]:
    kind = file.kind()
    if kind != "safetensors":
        raise wrong_kind(file.path, kind, "a safetensors file")
    (length,) = struct.unpack("<Q", file.head(0, 8))
    if length > MAX_HEADER:
        raise UnsafeCheckpointError(f"{file.path}: header of {length} bytes is over the limit")
    if 8 + length > file.size:
        raise CheckpointError(f"{file.path} ends inside its header; is the download complete?")
    text = file.head(8, 8 + length)
    if text.count(b"{") + text.count(b"[") > MAX_CONTAINERS:
        raise UnsafeCheckpointError(f"{file.path}: header describes more tensors than the limit")
    try:
        header = parse_json(text, name=f"header of {file.path}")
    except StoreError as error:
        raise UnsafeCheckpointError(str(error)) from error
    if not isinstance(header, dict):
        raise UnsafeCheckpointError(f"{file.path}: header is no JSON object")
    return header, 8 + length


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise UnsafeCheckpointError(f"{path}: __metadata__ is not a map of strings")
    return value


def _places(header: dict[str, Any], start: int, size: int, path: Path) -> dict[str, _Place]:
    places = {name: _place(name, entry, start, path) for name, entry in header.items()}
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = start
    for name, place in ordered.items():
        if place.start != end:
            what = "overlaps the tensor before it" if place.start < end else "leaves a hole before"
            raise UnsafeCheckpointError(f"{path}: data of tensor {name!r} {what}")
        end = place.stop
    if end > size:
        raise CheckpointError(f"{path} is cut short: {size} bytes of {end}")
    if end < size:
        raise UnsafeCheckpointError(f"{path}: {size - end} bytes after the last tensor")
    return ordered


def _place(name: str, entry: Any, data_start: int, path: Path) -> _Place:
    where = f"{path}: tensor {name!r}"
    problem = name_problem(name)
    if problem:
        raise UnsafeCheckpointError(f"{path}: tensor {name[:80]!r} {problem}")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise UnsafeCheckpointError(f"{where} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise CheckpointError(f"{where} has unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise UnsafeCheckpointError(f"{where} has no usable shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UnsafeCheckpointError(f"{where} has no usable data_offsets")
    if math.prod(shape) * ITEM_SIZE[dtype] != offsets[1] - offsets[0]:
        raise UnsafeCheckpointError(f"{where}: shape, dtype and data_offsets disagree")
    info = TensorInfo(dtype, tuple(shape))
    return _Place(info, data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    # type() and not isinstance(): true is an int to Python, and no size
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

"""Torch's zip checkpoints (`.bin`, `.pt`, since torch 1.6), read without running their pickle."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.errors import CheckpointError, UnsafeCheckpointError
from model_store.pickle_records import MAX_PROGRAM, TensorRecord, read_records
from model_store.stored_zip import StoredEntry, read_entries
from model_store.strided import StridedTensor
from model_store.tensor_names import name_problem
from model_store.tensor_sources import StoredTensor, TensorSource, in_memory
from model_store.tensors import ITEM_SIZE, RawTensor, TensorInfo
from model_store.weight_file import WeightFile, wrong_kind

# what trainers wrap a state dict in
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_CHUNK = 1 << 20


class TorchZipFile:
    """One torch zip file; a tensor is a checked view of a byte range of the archive."""

    def __init__(self, path: Path) -> None:
        """Open the file, read its pickle as data and check every tensor against its storage.

        Raises:
            CheckpointError: not a torch zip file, or no state dict in it.
            UnsafeCheckpointError: it would run code, or lies about its data.
        """
        self.path = path
        self.metadata: dict[str, str] = {}
        self._file = WeightFile(path)
        try:
            self._entries = _weight_entries(self._file)
            program = self._file.head(*_data_range(self._entries, path))
            for name, entry in self._entries.items():
                if not name.startswith("data/"):
                    _check_crc(self._file, name, entry)
            self._records = _state_dict(_read(program, path), path)
            for name, record in self._records.items():
                _check(record, self._entries, f"{path}: tensor {name!r}")
        except BaseException:
            self._file.close()
            raise

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> dtype and shape, in the order of the state dict."""
        return {
            name: TensorInfo(record.storage.dtype, record.shape)
            for name, record in self._records.items()
        }

    def source(self, name: str) -> TensorSource:
        """Where a tensor lies; read in row-major order, whatever its strides are."""
        record = self._records[name]
        dtype, size = record.storage.dtype, ITEM_SIZE[record.storage.dtype]
        if 0 in record.shape:
            return RawTensor(dtype, record.shape, memoryview(b""))
        start = self._entries[f"data/{record.storage.key}"].start + record.offset * size
        if _is_row_major(record):
            return StoredTensor(self._file, start, dtype, record.shape)
        return StridedTensor(self._file, start, TensorInfo(dtype, record.shape), record.strides)

    def read(self, name: str) -> RawTensor:
        """Read a tensor into memory of its own."""
        return in_memory(self.source(name))

    def check_sums(self) -> None:
        """Read every storage and compare it with the archive's checksum, where it has one.

        Raises:
            CheckpointError: naming the first entry that is damaged.
        """
        for name, entry in self._entries.items():
            _check_crc(self._file, name, entry)

    def close(self) -> None:
        self._file.close()


def _weight_entries(file: WeightFile) -> dict[str, StoredEntry]:
    """The archive's entries, their common first folder removed."""
    kind = file.kind()
    if kind != "a zip archive":
        raise wrong_kind(file.path, kind, "a torch zip file")
    entries = read_entries(file)
    roots = {name.partition("/")[0] for name in entries}
    if len(roots) != 1:
        raise UnsafeCheckpointError(f"{file.path}: its entries do not share one folder")
    inner = {name.partition("/")[2]: entry for name, entry in entries.items()}
    pickles = [name for name in inner if name.rpartition("/")[2].casefold() == "data.pkl"]
    if pickles != ["data.pkl"]:
        raise UnsafeCheckpointError(f"{file.path} has {len(pickles)} data.pkl, or a misplaced one")
    if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
        raise UnsafeCheckpointError(f"{file.path} is a TorchScript program, not weights")
    order = inner.get("byteorder")
    if order is not None and file.head(order.start, min(order.stop, order.start + 9)) != b"little":
        raise CheckpointError(f"{file.path} was written on a big-endian machine")
    return inner


def _check_crc(file: WeightFile, name: str, entry: StoredEntry) -> None:
    crc = 0
    for start in range(entry.start, entry.stop, _CHUNK):
        crc = zlib.crc32(file.head(start, min(start + _CHUNK, entry.stop)), crc)
    if entry.crc not in (0, crc):
        raise CheckpointError(f"{file.path}: entry {name[:80]!r} is damaged: its checksum is wrong")


def _data_range(entries: Mapping[str, StoredEntry], path: Path) -> tuple[int, int]:
    entry = entries["data.pkl"]
    if entry.size > MAX_PROGRAM:
        raise UnsafeCheckpointError(f"{path}: data.pkl of {entry.size} bytes is over the limit")
    return entry.start, entry.stop


def _read(program: bytes, path: Path) -> Any:
    try:
        return read_records(program)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def _state_dict(value: Any, path: Path) -> dict[str, TensorRecord]:
    values = _unwrapped(value, path)
    records: dict[str, TensorRecord] = {}
    for name, record in values.items():
        problem = name_problem(name)
        if problem:
            raise UnsafeCheckpointError(f"{path}: tensor {str(name)[:80]!r} {problem}")
        if not isinstance(record, TensorRecord):
            raise CheckpointError(
                f"{path}: {name[:80]!r} is no tensor but a {type(record).__name__}"
            )
        records[name] = record
    return records


def _unwrapped(value: Any, path: Path) -> dict[Any, Any]:
    if type(value) is not dict:
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a state dict")
    if any(isinstance(item, TensorRecord) for item in value.values()) or not value:
        return value
    nested = [key for key in _WRAPPERS if type(value.get(key)) is dict]
    if len(nested) != 1:
        raise CheckpointError(f"{path} holds no state dict, or several")
    inner: dict[Any, Any] = value[nested[0]]
    return inner


def _check(record: TensorRecord, entries: Mapping[str, StoredEntry], where: str) -> None:
    storage = record.storage
    entry = entries.get(f"data/{storage.key}")
    if entry is None:
        raise UnsafeCheckpointError(f"{where}: its storage is not in the archive")
    if entry.size != storage.nbytes:
        raise UnsafeCheckpointError(f"{where}: its storage has {entry.size} bytes, not as said")
    if 0 in record.shape:
        return
    if _last(record) + record.offset >= storage.elements:
        raise UnsafeCheckpointError(f"{where} reaches beyond its storage")
    if math.prod(record.shape) > storage.elements:
        raise UnsafeCheckpointError(f"{where} repeats its storage to look larger than it is")


def _last(record: TensorRecord) -> int:
    """How far the last element lies behind the first, in elements; no dimension is 0."""
    return sum((n - 1) * stride for n, stride in zip(record.shape, record.strides, strict=True))


def _is_row_major(record: TensorRecord) -> bool:
    expected = 1
    for size, stride in reversed(list(zip(record.shape, record.strides, strict=True))):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True

"""Write safetensors shards as tensors come, in any order, a few megabytes in memory at a time.

The plan (names, dtypes, shapes) is given first, so the headers and every tensor's place are known
before the data. The bytes depend on the plan, the limit and the data only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from model_store.errors import CheckpointError
from model_store.files import write_bytes
from model_store.hashed_file import HashedFile, HashLanes
from model_store.manifest import FileEntry, TensorDigest
from model_store.shard_plan import (
    Plan,
    PlannedShard,
    PlannedTensor,
    WrittenShards,
    index_json,
    plan_shards,
)
from model_store.tensor_sources import TensorSource
from model_store.tensors import ITEM_SIZE

__all__ = ["OpenShard", "PlannedTensor", "ShardSet", "ShardWriter", "WrittenShards"]

Watch = Callable[[memoryview], object]  # is shown every byte of a tensor, in order
FORMAT_PT = {"format": "pt"}  # readers of the field expect it, and mean "row-major, as in torch"


class OpenShard(Protocol):
    """One weight file that is being written."""

    def add(self, name: str, tensor: TensorSource, *also: Watch) -> None: ...

    def finish(self) -> Future[FileEntry]: ...

    def abandon(self) -> None: ...


class ShardSet:
    """Several weight files and their index, filled tensor by tensor; a context manager.

    A shard takes its name soon after its last tensor arrived; leaving the block by an exception
    removes the shards that are not complete.
    """

    def __init__(
        self,
        folder: Path,
        shards: tuple[PlannedShard, ...],
        index: str,
        open_shard: Callable[[Path, PlannedShard, HashLanes], OpenShard],
        in_file: Callable[[Sequence[PlannedTensor]], Sequence[PlannedTensor]] = tuple,
    ) -> None:
        self._folder, self._index, self._open_shard = folder, index, open_shard
        self._shards, self._in_file = shards, in_file
        self._planned = {
            tensor.name: (tensor, shard) for shard in shards for tensor in shard.tensors
        }
        self._left = {shard.file: len(shard.tensors) for shard in shards}
        self._open: dict[str, OpenShard] = {}
        self._closing: dict[str, tuple[OpenShard, Future[FileEntry]]] = {}
        self._files: dict[str, FileEntry] = {}
        self._tensors: dict[str, TensorDigest] = {}
        self._lanes = HashLanes()

    @property
    def plan(self) -> tuple[PlannedTensor, ...]:
        """The tensors in the order of the files; adding them in it hashes every byte once."""
        return tuple(tensor for shard in self._shards for tensor in self._in_file(shard.tensors))

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """The weight files that will be there, in order."""
        return self._shards

    @property
    def finished(self) -> Mapping[str, FileEntry]:
        """The weight files that have their name already."""
        for file in [file for file, (_, entry) in self._closing.items() if entry.done()]:
            self._settle(file)
        return self._files

    @property
    def digests(self) -> Mapping[str, TensorDigest]:
        """The digests of the tensors written so far."""
        return self._tensors

    def reuse(self, file: FileEntry, tensors: Mapping[str, TensorDigest]) -> None:
        """Count a shard that an earlier run of the same plan finished; the caller has checked it.

        Raises:
            CheckpointError: no such shard, or not the tensors that are planned for it.
        """
        shard = next((shard for shard in self._shards if shard.file == file.path), None)
        if shard is None or [
            (tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors
        ] != [(name, digest.dtype, digest.shape) for name, digest in tensors.items()]:
            raise CheckpointError(f"{file.path} is not a shard of this plan")
        self._files[file.path], self._left[file.path] = file, 0
        self._tensors.update(tensors)

    def add(
        self, name: str, tensor: TensorSource, *watch: Watch, sha256: str | None = None
    ) -> TensorDigest:
        """Write one planned tensor and return its digest.

        Args:
            name: as planned.
            tensor: of the planned dtype and shape.
            watch: functions that are to see its bytes too; they run in another thread.
            sha256: of its bytes, where the caller knows it: it is not computed again.

        Raises:
            CheckpointError: not planned, of another dtype or shape, or added before.
        """
        planned, shard = self._expected(name, tensor)
        if shard.file not in self._open:
            self._open[shard.file] = self._open_shard(self._folder / shard.file, shard, self._lanes)
        digest = hashlib.sha256()
        shown = watch if sha256 is not None else (digest.update, *watch)
        self._open[shard.file].add(name, tensor, *shown)
        sha256 = sha256 or digest.hexdigest()
        self._tensors[name] = TensorDigest(planned.dtype, planned.shape, sha256)
        self._left[shard.file] -= 1
        if not self._left[shard.file]:
            opened = self._open.pop(shard.file)
            self._closing[shard.file] = (opened, opened.finish())
        return self._tensors[name]

    def _settle(self, file: str) -> None:
        """Wait until a shard has its name."""
        self._files[file] = self._closing[file][1].result()
        del self._closing[file]

    def _expected(self, name: str, tensor: TensorSource) -> tuple[PlannedTensor, PlannedShard]:
        if name not in self._planned or name in self._tensors:
            raise CheckpointError(f"tensor {name!r} is not in the plan, or was written before")
        planned, shard = self._planned[name]
        if (tensor.dtype, tensor.shape) != (planned.dtype, planned.shape):
            raise CheckpointError(
                f"tensor {name!r} is {tensor.dtype} {tensor.shape}, "
                f"{planned.dtype} {planned.shape} was planned"
            )
        return planned, shard

    def finish(self) -> WrittenShards:
        """Write the index of several shards; every tensor of the plan must be there.

        Raises:
            CheckpointError: naming the first tensor that is missing.
        """
        missing = next((name for name in self._planned if name not in self._tensors), None)
        if missing is not None:
            raise CheckpointError(f"tensor {missing!r} was planned and never written")
        for file in list(self._closing):
            self._settle(file)
        self._lanes.close()
        files = list(self._files.values())
        if len(self._shards) > 1:
            data = index_json(self._shards)
            write_bytes(self._folder / self._index, data)
            files.append(FileEntry(self._index, len(data), hashlib.sha256(data).hexdigest()))
        ordered = {name: self._tensors[name] for name in self._planned}
        return WrittenShards(tuple(sorted(files, key=lambda entry: entry.path)), ordered)

    def abandon(self) -> None:
        """Remove the shards that are not complete."""
        self._lanes.close()
        for shard in self._open.values():
            shard.abandon()
        for shard, entry in self._closing.values():
            if entry.exception() is not None:
                shard.abandon()
        self._open.clear()
        self._closing.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()


class ShardWriter(ShardSet):
    """Safetensors shards: `model-0000x-of-0000y.safetensors` and their index, or one file."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        max_shard_bytes: int = 5_000_000_000,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Lay the shards out.

        Args:
            folder: where the files go, normally a new snapshot's folder.
            plan: (name, dtype, shape) of every tensor that will be added.
            max_shard_bytes: limit on the tensors' bytes in one file.
            metadata: for every header; `{"format": "pt"}` unless given.

        Raises:
            CheckpointError: a plan that cannot be written.
        """
        shards = plan_shards(
            plan, max_shard_bytes=max_shard_bytes, stem="model", suffix=".safetensors"
        )
        told = dict(FORMAT_PT if metadata is None else metadata)
        super().__init__(
            folder,
            shards,
            "model.safetensors.index.json",
            lambda path, shard, lanes: _SafetensorsShard(path, shard, lanes, told),
            _widest_first,
        )


class _SafetensorsShard:
    def __init__(
        self, path: Path, shard: PlannedShard, lanes: HashLanes, metadata: Mapping[str, str]
    ) -> None:
        tensors = _widest_first(shard.tensors)
        header = _header(tensors, metadata)
        self._offsets: dict[str, int] = {}
        at = len(header)
        for tensor in tensors:
            self._offsets[tensor.name] = at
            at += tensor.nbytes
        self._file = HashedFile(path, lanes)
        self._file.write(0, header)

    def add(self, name: str, tensor: TensorSource, *also: Watch) -> None:
        self._file.write(self._offsets[name], tensor, *also)

    def finish(self) -> Future[FileEntry]:
        return self._file.finish()

    def abandon(self) -> None:
        self._file.abandon()


def _widest_first(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    # every tensor then starts at a multiple of its element size
    return sorted(tensors, key=lambda tensor: -ITEM_SIZE[tensor.dtype])


def _header(tensors: list[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    return struct.pack("<Q", len(text)) + text

"""Write torch's zip checkpoints without torch: `.bin` shards and their index, for old layouts.

The files open with `torch.load(weights_only=True)` of every torch since 1.6. An archive holds
`data.pkl` (a plain dict of tensors, protocol 2), `byteorder`, one stored entry per tensor, aligned
to 64 bytes as torch does, and `version`. No timestamps: the same tensors give the same bytes.
"""

from __future__ import annotations

import math
import struct
import zlib
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import CheckpointError
from model_store.hashed_file import HashedFile, HashLanes
from model_store.manifest import FileEntry
from model_store.pickle_records import STORAGES
from model_store.shard_plan import Plan, PlannedShard, PlannedTensor, plan_shards
from model_store.shard_writer import ShardSet, Watch
from model_store.tensor_sources import TensorSource

_ROOT = b"archive/"
_ALIGNMENT = 64
_LIMIT = 4_000_000_000  # plain zip fields hold no more, and a torch shard need not be larger
_FLAGS = 0x0808  # UTF-8 names; checksum and sizes follow the data
_DATE = 0x0021  # 1 January 1980, the first day that zip knows
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


class TorchShardWriter(ShardSet):
    """Torch shards: `pytorch_model-0000x-of-0000y.bin` and their index, or one file."""

    def __init__(self, folder: Path, plan: Plan, *, max_shard_bytes: int = 2_000_000_000) -> None:
        """Lay the shards out; see `ShardWriter`.

        Raises:
            CheckpointError: a plan that torch's format, or this writer, cannot hold.
        """
        shards = plan_shards(
            plan, max_shard_bytes=max_shard_bytes, stem="pytorch_model", suffix=".bin"
        )
        for shard in shards:
            _check_shard(shard)
        super().__init__(folder, shards, "pytorch_model.bin.index.json", _TorchShard)


def _check_shard(shard: PlannedShard) -> None:
    if sum(tensor.nbytes + 256 for tensor in shard.tensors) > _LIMIT or len(shard.tensors) > 60_000:
        raise CheckpointError(f"{shard.file} would be over 4 GB or 60 000 tensors")
    for tensor in shard.tensors:
        if tensor.dtype not in _STORAGE_OF:
            raise CheckpointError(f"tensor {tensor.name!r}: torch files hold no {tensor.dtype}")


@dataclass(slots=True)
class _Entry:
    """One entry of the archive; its checksum is known once its data was written."""

    name: bytes
    offset: int
    padding: int
    size: int
    crc: int = 0

    @property
    def data_at(self) -> int:
        return self.offset + 30 + len(self.name) + self.padding

    @property
    def end(self) -> int:
        return self.data_at + self.size + 16

    def local_header(self) -> bytes:
        # the padding field is "FB", as in torch's own files
        pad = struct.pack("<2sH", b"FB", self.padding - 4) + b"Z" * (self.padding - 4)
        fields = (b"PK\x03\x04", 0, _FLAGS, 0, 0, _DATE, 0, 0, 0, len(self.name), self.padding)
        return struct.pack("<4s5H3L2H", *fields) + self.name + pad

    def descriptor(self) -> bytes:
        return struct.pack("<4s3L", b"PK\x07\x08", self.crc, self.size, self.size)

    def central(self) -> bytes:
        fields = (
            b"PK\x01\x02", 0, 0, _FLAGS, 0, 0, _DATE, self.crc, self.size, self.size,
            len(self.name), 0, 0, 0, 0, 0, self.offset,
        )  # fmt: skip
        return struct.pack("<4s6H3L5H2L", *fields) + self.name


def _entry(name: bytes, offset: int, size: int) -> _Entry:
    entry = _Entry(_ROOT + name, offset, 4, size)
    entry.padding += -entry.data_at % _ALIGNMENT
    return entry


class _TorchShard:
    def __init__(self, path: Path, shard: PlannedShard, lanes: HashLanes) -> None:
        program = state_dict_pickle(shard.tensors)
        self._entries: list[_Entry] = []
        self._file = HashedFile(path, lanes)
        self._write_whole(b"data.pkl", program)
        self._write_whole(b"byteorder", b"little")
        self._tensors: dict[str, _Entry] = {}
        for key, tensor in enumerate(shard.tensors):
            entry = _entry(b"data/%d" % key, self._end, tensor.nbytes)
            self._entries.append(entry)
            self._tensors[tensor.name] = entry

    @property
    def _end(self) -> int:
        return self._entries[-1].end if self._entries else 0

    def _write_whole(self, name: bytes, data: bytes) -> None:
        entry = _entry(name, self._end, len(data))
        self._entries.append(entry)
        self._write(entry, data)

    def _write(self, entry: _Entry, data: bytes | TensorSource, *also: Watch) -> None:
        def checksum(chunk: memoryview) -> None:
            entry.crc = zlib.crc32(chunk, entry.crc)

        self._file.write(entry.offset, entry.local_header())
        self._file.write(entry.data_at, data, checksum, *also)
        self._file.write(entry.data_at + entry.size, entry.descriptor())

    def add(self, name: str, tensor: TensorSource, *also: Watch) -> None:
        self._write(self._tensors[name], tensor, *also)

    def finish(self) -> Future[FileEntry]:
        self._write_whole(b"version", b"3\n")
        directory = b"".join(entry.central() for entry in self._entries)
        count = len(self._entries)
        end = struct.pack(
            "<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), self._end, 0
        )
        self._file.write(self._end, directory + end)
        return self._file.finish()

    def abandon(self) -> None:
        self._file.abandon()


def state_dict_pickle(tensors: tuple[PlannedTensor, ...]) -> bytes:
    """The pickle (protocol 2) of a dict of contiguous tensors, tensor k in storage `data/<k>`."""
    items = [_text(tensor.name) + _tensor(str(key), tensor) for key, tensor in enumerate(tensors)]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _tensor(key: str, tensor: PlannedTensor) -> bytes:
    storage = (
        b"(" + _text("storage") + _global(_STORAGE_OF[tensor.dtype]) + _text(key) + _text("cpu")
        + _integer(math.prod(tensor.shape)) + b"tQ"
    )  # fmt: skip
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    hooks = _global("collections OrderedDict") + b")R"
    return (
        _global("torch._utils _rebuild_tensor_v2")
        + (b"(" + storage + _integer(0) + _integers(tensor.shape) + _integers(strides))
        + (b"\x89" + hooks + b"tR")
    )


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode("ascii") + b"\n"


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _integers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)

"""A file that is hashed while it is written, and takes its name when it is complete."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from model_store.files import sha256_file
from model_store.manifest import FileEntry
from model_store.tensor_sources import CHUNK, TensorSource, pieces
from model_store.tensors import RawTensor

_BUFFERS = 8
_SMALL = 64 << 10  # below this, handing work to a thread costs more than the work
_Update = Callable[[memoryview], object]


class HashLanes:
    """Threads beside the one that writes: one hashes files, one tensors, one waits for the disk.

    A lane works in the order it was asked to. What is read passes through a few buffers that are
    used again, so memory does not grow with the tensors.
    """

    def __init__(self) -> None:
        self._files = ThreadPoolExecutor(1, thread_name_prefix="file-sha256")
        self._tensors = ThreadPoolExecutor(1, thread_name_prefix="tensor-sha256")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="fsync")
        self._ring: deque[tuple[memoryview, list[Future[object]]]] = deque()

    def file(self, update: _Update, chunk: memoryview) -> Future[object]:
        return self._files.submit(update, chunk)

    def tensor(self, updates: Sequence[_Update], chunk: memoryview) -> Future[object]:
        return self._tensors.submit(_each, updates, chunk)

    def later(self, closing: Callable[[], FileEntry]) -> Future[FileEntry]:
        return self._disk.submit(closing)

    def chunks(self, source: TensorSource) -> Iterator[tuple[memoryview, list[Future[object]]]]:
        """Cut `source` up; whoever hands a chunk to a lane adds the future to the list beside it.

        The list's work may go on while the next chunk is read.
        """
        if isinstance(source, RawTensor):
            for chunk in pieces(source):
                yield chunk, []
            return
        for start in range(0, source.nbytes, CHUNK):
            users: list[Future[object]] = []
            buffer = self._free_buffer()
            self._ring.append((buffer, users))
            chunk = buffer[: source.nbytes - start]
            source.read_into(chunk, start)
            yield chunk, users

    def _free_buffer(self) -> memoryview:
        if len(self._ring) < _BUFFERS:
            return memoryview(bytearray(CHUNK))
        buffer, users = self._ring.popleft()
        for future in users:
            future.result()
        return buffer

    def close(self) -> None:
        """Stop the threads, once they are done."""
        for lane in (self._files, self._tensors, self._disk):
            lane.shutdown()


def _each(updates: Sequence[_Update], chunk: memoryview) -> None:
    for update in updates:
        update(chunk)


class HashedFile:
    """Bytes at chosen places of a `.partial` file; written front to back, they are read once."""

    def __init__(self, path: Path, lanes: HashLanes) -> None:
        """Open `path`'s partial file; `lanes` run its digest, and the tensors', beside writing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._file = self._partial.open("wb", buffering=0)
        self._lanes = lanes
        self._digest = hashlib.sha256()
        self._pending: Future[object] | None = None  # the digest's last update
        self._hashed = 0  # how many bytes from the front the digest has seen

    def write(self, offset: int, data: bytes | TensorSource, *also: _Update) -> None:
        """Write `data` at `offset` and give each chunk of it to the functions in `also`.

        They have seen all of it when this returns, and what `data` reads from may change again.
        """
        tensor = _bytes(data) if isinstance(data, bytes) else data
        if not tensor.nbytes:
            return
        in_order = offset == self._hashed
        # out of order: the finished file is hashed in a second pass
        self._hashed = offset + tensor.nbytes if in_order else -1
        waiting: list[Future[object]] = []
        for chunk, users in self._lanes.chunks(tensor):
            if in_order:
                self._hash(chunk, users)
            if also:
                users.append(self._lanes.tensor(also, chunk))
            self._write(offset, chunk)
            offset += len(chunk)
            waiting = users
        for future in waiting:  # lanes keep the order: when the last is done, all are
            future.result()

    def _hash(self, chunk: memoryview, users: list[Future[object]]) -> None:
        if len(chunk) < _SMALL and (self._pending is None or self._pending.done()):
            self._digest.update(chunk)
            return
        self._pending = self._lanes.file(self._digest.update, chunk)
        users.append(self._pending)

    def _write(self, offset: int, chunk: memoryview) -> None:
        while chunk:
            done = os.pwrite(self._file.fileno(), chunk, offset)
            chunk, offset = chunk[done:], offset + done

    def finish(self) -> Future[FileEntry]:
        """Bring the file to the disk and give it its name, beside what is written next."""
        return self._lanes.later(self._close)

    def _close(self) -> FileEntry:
        if self._pending is not None:
            self._pending.result()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        digest = self._digest.hexdigest() if self._hashed == size else sha256_file(self._partial)
        self._partial.replace(self._path)
        return FileEntry(self._path.name, size, digest)

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _bytes(data: bytes) -> RawTensor:
    return RawTensor("U8", (len(data),), memoryview(data))

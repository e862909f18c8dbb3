"""A file that is hashed while it is written, and takes its name when it is complete."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from model_store.files import sha256_file
from model_store.manifest import FileEntry
from model_store.mapped_file import file_range

_CHUNK = 1 << 20  # what was just read is still in the processor's cache when it is hashed
_BUFFERS = 8
_SMALL = 64 << 10  # below this, handing work to a thread costs more than the work
_Update = Callable[[memoryview], object]


class HashLanes:
    """Two threads beside the one that writes: files are hashed in one, tensors in the other.

    A lane works in the order it was asked to. Bytes of mapped files pass through a few buffers that
    are used again, so memory does not grow with the tensors.
    """

    def __init__(self) -> None:
        self._files = ThreadPoolExecutor(1, thread_name_prefix="file-sha256")
        self._tensors = ThreadPoolExecutor(1, thread_name_prefix="tensor-sha256")
        self._ring: deque[tuple[memoryview, list[Future[object]]]] = deque()

    def file(self, update: _Update, chunk: memoryview) -> Future[object]:
        return self._files.submit(update, chunk)

    def tensor(self, update: _Update, chunk: memoryview) -> Future[object]:
        return self._tensors.submit(update, chunk)

    def chunks(self, data: memoryview) -> Iterator[tuple[memoryview, list[Future[object]]]]:
        """Cut `data` up; whoever hands a chunk to a lane adds the future to the list beside it."""
        origin = file_range(data)
        for start in range(0, len(data), _CHUNK):
            size = min(_CHUNK, len(data) - start)
            users: list[Future[object]] = []
            if origin is None:
                yield data[start : start + size], users
                continue
            buffer = self._free_buffer()
            self._ring.append((buffer, users))
            origin.read_into(buffer[:size], start)
            yield buffer[:size], users

    def _free_buffer(self) -> memoryview:
        if len(self._ring) < _BUFFERS:
            return memoryview(bytearray(_CHUNK))
        buffer, users = self._ring.popleft()
        for future in users:
            future.result()
        return buffer

    def close(self) -> None:
        """Stop the threads, once they are done."""
        self._files.shutdown()
        self._tensors.shutdown()


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

    def write(self, offset: int, data: bytes | memoryview, *also: _Update) -> None:
        """Write `data` at `offset` and give each chunk of it to the functions in `also`.

        They have seen all of it when this returns, and `data` may be changed again.
        """
        view = memoryview(data)
        if not view.nbytes:
            return
        in_order = offset == self._hashed
        # out of order: the finished file is hashed in a second pass
        self._hashed = offset + view.nbytes if in_order else -1
        waiting: list[Future[object]] = []
        for chunk, users in self._lanes.chunks(view.cast("B")):
            if in_order:
                self._hash(chunk, users)
            users += [self._lanes.tensor(update, chunk) for update in also]
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

    def finish(self) -> FileEntry:
        """Give the file its name and return its digest."""
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

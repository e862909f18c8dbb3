"""A file that is hashed while it is written, and takes its name when it is complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from model_store.files import sha256_file
from model_store.manifest import FileEntry

_CHUNK = 8 << 20
_SMALL = 64 << 10  # below this, handing work to a thread costs more than the work
_Update = Callable[[memoryview], object]


class HashedFile:
    """Bytes at chosen places of a `.partial` file; written front to back, they are read once."""

    def __init__(self, path: Path, hasher: Executor) -> None:
        """Open `path`'s partial file; `hasher` runs the file's digest beside the tensors'."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._file = self._partial.open("wb")
        self._hasher = hasher
        self._digest = hashlib.sha256()
        self._hashed = 0  # how many bytes from the front the digest has seen

    def write(self, offset: int, data: bytes | memoryview, *also: _Update) -> None:
        """Write `data` at `offset` and give each chunk of it to the functions in `also`."""
        if offset == self._hashed:
            self._hashed += memoryview(data).nbytes
            self._write(offset, data, (self._digest.update, *also))
        else:
            self._hashed = -1  # out of order: the finished file is hashed in a second pass
            self._write(offset, data, also)

    def _write(self, offset: int, data: bytes | memoryview, updates: tuple[_Update, ...]) -> None:
        self._file.seek(offset)
        rest = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        for start in range(0, len(rest), _CHUNK):
            chunk = rest[start : start + _CHUNK]
            if len(chunk) < _SMALL:
                for update in updates:
                    update(chunk)
                self._file.write(chunk)
                continue
            running = [self._hasher.submit(update, chunk) for update in updates]
            self._file.write(chunk)
            for future in running:
                future.result()

    def finish(self) -> FileEntry:
        """Give the file its name and return its digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.seek(0, os.SEEK_END)
        self._file.close()
        digest = self._digest.hexdigest() if self._hashed == size else sha256_file(self._partial)
        self._partial.replace(self._path)
        return FileEntry(self._path.name, size, digest)

    def abandon(self) -> None:
        """Remove what was written so far."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

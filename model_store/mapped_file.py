"""A weight file mapped read-only into memory, with what it looks like when it is not weights."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from model_store.errors import CheckpointError
from model_store.tensors import ITEM_SIZE

_PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's dtype (safetensors' name for it) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        return self.elements * ITEM_SIZE[self.dtype]


class _Mapping(mmap.mmap):
    """A mapping that knows its file; views of it lead back here through their `obj`."""

    path: Path
    handle: int
    stamp: tuple[int, int]

    def still(self) -> os.stat_result:
        """Refuse a file that shrank or changed: touching pages that are gone kills the process."""
        now = os.fstat(self.handle)
        if (now.st_size, now.st_mtime_ns) != self.stamp:
            raise CheckpointError(f"{self.path} was changed while it was read")
        return now


@dataclass(frozen=True, slots=True)
class FileRange:
    """Where in its file a mapped view lies."""

    mapping: _Mapping
    start: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset` bytes behind the start, without touching the mapping.

        Raises:
            CheckpointError: the file ends earlier than it did when it was opened.
        """
        done = 0
        while done < len(buffer):
            got = os.preadv(self.mapping.handle, [buffer[done:]], self.start + offset + done)
            if got == 0:
                raise CheckpointError(f"{self.mapping.path} was cut short while it was read")
            done += got


def file_range(data: memoryview) -> FileRange | None:
    """Find where in a mapped file `data` lies; None when it is memory of its own."""
    owner: Any = data
    while owner is not None and not isinstance(owner, _Mapping):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    if owner is None or not data.c_contiguous or data.nbytes == 0:
        return None
    return FileRange(owner, _address(data) - _address(memoryview(owner)))


def _address(data: memoryview) -> int:
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


class MappedFile:
    """Bytes of a plain file, without reading them; keeps about one range resident.

    Views given out stay valid after `close`: the mapping goes when the last of them does.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing or is no plain file")
        self.path = path
        # a pipe put there in the meantime would block an open for ever
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = os.fstat(handle).st_size
            if size == 0:
                raise CheckpointError(f"{path} is empty")
            self._map = _Mapping(handle, size, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(handle)
            raise
        weakref.finalize(self._map, os.close, handle)
        self._map.path, self._map.handle = path, handle
        self._map.stamp = (size, os.fstat(handle).st_mtime_ns)
        self.size = size
        self._resident = (0, 0)

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes [start, stop); pages of the range given out before may be dropped.

        Raises:
            CheckpointError: the file was changed since it was opened.
        """
        self._map.still()
        self.forget()
        self._resident = (start, stop)
        return memoryview(self._map)[start:stop]

    def copy(self, start: int, stop: int) -> bytes:
        """Copy the bytes [start, stop), as far as the file goes; maps no page."""
        pieces, stop = [], min(stop, self.size)
        while start < stop:
            pieces.append(os.pread(self._map.handle, stop - start, start))
            if not pieces[-1]:
                raise CheckpointError(f"{self.path} was cut short while it was read")
            start += len(pieces[-1])
        return b"".join(pieces)

    def forget(self) -> None:
        """Let go of the pages of the range given out last."""
        # dropped pages of a read-only mapping come back from the page cache when touched again,
        # so this bounds the resident memory and never invalidates a view
        first, last = self._resident
        begin = first - first % _PAGE
        if last > begin and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, last - begin)

    def close(self) -> None:
        with suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def kind(self) -> str:
        """Say in words what the first bytes are, for an error about the wrong kind of file."""
        head = self.copy(0, min(self.size, 512))
        text = head.lstrip().lower()
        if head.startswith(b"version https://git-lfs.github.com/"):
            return "a git-lfs pointer, not the weights that it points to"
        if head[8:9] == b"{":
            return "safetensors"
        if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
            return "a web page, not weights"
        if head.startswith(b"PK\x03\x04"):
            return "a zip archive"
        if head.startswith(b"\x80"):
            return "a bare pickle (torch before 1.6), which is never run here"
        if head[257:262] == b"ustar":
            return "a tar archive (torch before 0.4), which is never run here"
        return "no weight file"

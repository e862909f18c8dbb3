"""A weight file mapped read-only into memory, with what it looks like when it is not weights."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

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


class MappedFile:
    """Bytes of a plain file, without reading them; keeps about one range resident.

    Views given out stay valid after `close`: the mapping goes when the last of them does.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing or is no plain file")
        self.path = path
        with path.open("rb") as handle:
            self.size = path.stat().st_size
            if self.size == 0:
                raise CheckpointError(f"{path} is empty")
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self._map)
        self._resident = (0, 0)

    def view(self, start: int, stop: int) -> memoryview:
        """Return the bytes [start, stop); pages of the range given out before may be dropped."""
        self._forget()
        self._resident = (start, stop)
        return memoryview(self._map)[start:stop]

    def copy(self, start: int, stop: int) -> bytes:
        """Copy the bytes [start, stop)."""
        return self._map[start:stop]

    def find_last(self, pattern: bytes, start: int, stop: int) -> int:
        return self._map.rfind(pattern, start, stop)

    def _forget(self) -> None:
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

"""A weight file that is read where it is needed, with what it looks like when it is not weights.

Nothing is mapped into memory: touching a page of a mapping whose file was cut in the meantime kills
the process, a read that comes up short is an error like any other.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from model_store.errors import CheckpointError


class WeightFile:
    """Bytes of a plain file by their place; the file must stay as it was when it was opened."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            CheckpointError: no plain file, or an empty one.
        """
        if not path.is_file():
            raise CheckpointError(f"{path} is missing or is no plain file")
        self.path = path
        # a pipe put there in the meantime would block an open for ever
        self._handle: int | None = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        state = os.fstat(self._handle)
        self.size = state.st_size
        self._stamp = (state.st_size, state.st_mtime_ns)
        if self.size == 0:
            self.close()
            raise CheckpointError(f"{path} is empty")

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on.

        Raises:
            CheckpointError: the file is closed, was changed since it was opened, or ends too early.
        """
        handle = self._unchanged()
        done = 0
        while done < len(buffer):
            got = os.preadv(handle, [buffer[done:]], start + done)
            if got == 0:
                raise CheckpointError(f"{self.path} was cut short while it was read")
            done += got

    def copy(self, start: int, stop: int) -> memoryview:
        """Copy the bytes [start, stop), as far as the file goes, into memory of their own."""
        # not a bytearray: that would be filled with zeros first
        data = np.empty(max(min(stop, self.size) - start, 0), np.uint8).data
        self.read_into(data, start)
        return data

    def head(self, start: int, stop: int) -> bytes:
        """Copy a few bytes, as far as the file goes."""
        return bytes(self.copy(start, stop))

    def _unchanged(self) -> int:
        if self._handle is None:
            raise CheckpointError(f"{self.path} was closed before it was read")
        now = os.fstat(self._handle)
        if (now.st_size, now.st_mtime_ns) != self._stamp:
            raise CheckpointError(f"{self.path} was changed while it was read")
        return self._handle

    def close(self) -> None:
        """Close the file; tensors that were not read yet are out of reach then."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

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
        head = self.head(0, 512)
        text = head.lstrip().lower()
        if head.startswith(b"version https://git-lfs.github.com/"):
            return LFS_POINTER
        if head[8:9] == b"{":
            return "safetensors"
        if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
            return WEB_PAGE
        if head.startswith(b"PK\x03\x04"):
            return "a zip archive"
        if head.startswith(b"\x80"):
            return BARE_PICKLE
        if head[257:262] == b"ustar":
            return TAR_ARCHIVE
        return "no weight file"


LFS_POINTER = "a git-lfs pointer, not the weights that it points to"
WEB_PAGE = "a web page, not weights"
BARE_PICKLE = "a bare pickle (torch before 1.6), which is never run here"
TAR_ARCHIVE = "a tar archive (torch before 0.4), which is never run here"
_SAVE_AGAIN = (
    "If you trust it, let torch save it anew, in a place of its own: "
    "torch.save(torch.load(OLD, weights_only=True), NEW)."
)
_WAYS_OUT = {
    LFS_POINTER: "Fetch the file itself: git lfs pull, or download the repository with ferry.",
    WEB_PAGE: "The server answered with a page: download the file again, logged in if need be.",
    BARE_PICKLE: _SAVE_AGAIN,
    TAR_ARCHIVE: _SAVE_AGAIN,
}


def wrong_kind(path: Path, kind: str, wanted: str) -> CheckpointError:
    """The error for a file that is of another kind than wanted, with the way out."""
    return CheckpointError(f"{path} is {kind}, not {wanted}", hint=_WAYS_OUT.get(kind))

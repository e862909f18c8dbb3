"""Hash a file's bytes in order while parts of it arrive in any order."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass

_READ = 1 << 18
_AT_ONCE = 8 << 20  # one write catches up so much, or its connection would stand still


@dataclass(frozen=True, slots=True)
class Digests:
    """What a file hashes to: its own sha256, and the id git would give it."""

    sha256: str
    git_sha1: str | None = None


class Frontier:
    """The hash of the bytes before `position`, all of which are there."""

    def __init__(self, size: int, *, git_id: bool) -> None:
        self.position = 0
        self._lock = threading.Lock()
        self._retired = False
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git_id else None

    def retire(self) -> None:
        """Wait for a thread that is hashing, and let none begin: the handle may go away then."""
        with self._lock:
            self._retired = True

    def follow(self, handle: int, limit: int, offset: int, data: bytes | memoryview) -> None:
        """Hash some of what is there up to `limit`; `data` are the bytes at `offset`, in memory.

        Whoever comes second leaves the hashing to the first, or to `digests`.
        """
        if self.position >= limit or not self._lock.acquire(blocking=False):
            return
        try:
            if self.position == offset and not self._retired:
                self._add(data)
            self._advance(handle, min(limit, self.position + _AT_ONCE))
        finally:
            self._lock.release()

    def digests(self, handle: int, size: int) -> Digests:
        """Hash the rest; the file must be complete."""
        with self._lock:
            self._advance(handle, size)
        return Digests(self._sha256.hexdigest(), self._git.hexdigest() if self._git else None)

    def _advance(self, handle: int, limit: int) -> None:
        while self.position < limit and not self._retired:
            chunk = os.pread(handle, min(_READ, limit - self.position), self.position)
            if not chunk:
                raise OSError("a partial file became shorter while it was read")
            self._add(chunk)

    def _add(self, chunk: bytes | memoryview) -> None:
        self._sha256.update(chunk)
        if self._git is not None:
            self._git.update(chunk)
        self.position += len(chunk)

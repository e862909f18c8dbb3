"""A file that several threads fill in parts, and that survives being killed.

Beside the place: `<place>.partial` holds the bytes, `<place>.parts.partial` says which are there: a
JSON header of 1024 bytes, then one little-endian uint64 per part. The bytes are written before
their count, so a killed process has at least what it counted; a count that a power cut made too
large is found by the digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEADER = 1024
_READ = 1 << 20
_MOST_PARTS = 4096


class SupersededError(Exception):
    """The file was started anew while this thread worked on an older try; drop the bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One byte range of a file."""

    start: int
    end: int  # exclusive

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Digests:
    """What a file hashes to: its own sha256, and the id git would give it."""

    sha256: str
    git_sha1: str | None = None


class _Frontier:
    """Hashes a file's bytes in order while parts of it arrive in any order."""

    def __init__(self, size: int, *, git_id: bool) -> None:
        self.position = 0
        self.lock = threading.Lock()
        self._retired = False
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git_id else None

    def retire(self) -> None:
        """Wait for a thread that is hashing, and let none begin: the handle may go away then."""
        with self.lock:
            self._retired = True

    def advance(self, handle: int, limit: int, offset: int = -1, data: bytes = b"") -> None:
        """Hash up to `limit`; `data` are the bytes at `offset`, still in memory."""
        while self.position < limit and not self._retired:
            if self.position == offset:
                chunk = data
            else:
                chunk = os.pread(handle, min(_READ, limit - self.position), self.position)
            if not chunk:
                raise OSError("a partial file became shorter while it was read")
            self._sha256.update(chunk)
            if self._git is not None:
                self._git.update(chunk)
            self.position += len(chunk)

    def digests(self) -> Digests:
        return Digests(self._sha256.hexdigest(), self._git.hexdigest() if self._git else None)


class PartialFile:
    """The bytes of one file on their way to `place`; open it with `try_open`, end with `close`.

    Args:
        place: the file's name once it is complete and verified.
        size: its length in bytes, above zero.
        identity: what the bytes are, such as a digest; leftovers of something else are dropped.
        part_size: how the file is cut; a leftover keeps the cut it was made with.
        git_id: compute the id of the git blob, too.
    """

    def __init__(
        self, place: Path, size: int, *, identity: str, part_size: int, git_id: bool = False
    ) -> None:
        self.place, self.size = place, size
        self.generation = 0
        self._identity, self._git_id = identity, git_id
        self._part_size = max(1, min(part_size, size), -(-size // _MOST_PARTS))
        self._partial, self._journal_path = leftovers(place)
        self._lock = threading.Lock()
        self._handle = self._journal = -1
        self._done: list[int] = []
        self._first_open = 0  # all parts before it are complete
        self._finishing = False
        self._frontier = _Frontier(size, git_id=git_id)

    def try_open(self) -> bool:
        """Open and lock the leftover, or start anew; False while another process has it."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        handle = os.open(self._partial, flags, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # between opening and locking, another process may have finished and renamed it
            current = self._partial.stat().st_ino == os.fstat(handle).st_ino
        except (BlockingIOError, FileNotFoundError):
            current = False
        if not current:
            os.close(handle)
            return False
        self._handle = handle
        self._journal = os.open(self._journal_path, flags, 0o644)
        if not self._read_journal():
            self._start_anew(self._part_size)
        return True

    @property
    def parts(self) -> list[Part]:
        starts = range(0, self.size, self._part_size)
        return [Part(start, min(start + self._part_size, self.size)) for start in starts]

    def part(self, index: int) -> Part:
        start = index * self._part_size
        return Part(start, min(start + self._part_size, self.size))

    def missing(self) -> list[int]:
        """Indices of the parts that are not complete."""
        return [i for i, part in enumerate(self.parts) if self._done[i] < part.size]

    @property
    def received(self) -> int:
        return sum(self._done)

    def position(self, index: int, generation: int) -> int:
        """The file offset at which a part goes on.

        Raises:
            SupersededError: the file was started anew.
        """
        with self._lock:
            self._check(generation)
            return self.part(index).start + self._done[index]

    def write(self, index: int, generation: int, data: bytes) -> None:
        """Append `data` to a part; it must not reach past the part's end.

        Raises:
            SupersededError: the file was started anew.
        """
        with self._lock:
            self._check(generation)
            offset = self.part(index).start + self._done[index]
            _write_all(self._handle, data, offset)
            self._done[index] += len(data)
            self._note(index)
            limit = self._contiguous()
            frontier, handle = self._frontier, self._handle
        # whoever comes second leaves the hashing to the first, or to digests()
        if frontier.position < limit and frontier.lock.acquire(blocking=False):
            try:
                frontier.advance(handle, limit, offset, data)
            finally:
                frontier.lock.release()

    def claim_finish(self, generation: int) -> bool:
        """Whether all parts are complete, and the caller is the first to ask."""
        with self._lock:
            if generation != self.generation or self._finishing:
                return False
            self._finishing = self._contiguous() == self.size
            return self._finishing

    def digests(self) -> Digests:
        """Hash what is not hashed yet; for the one that may finish."""
        with self._frontier.lock:
            self._frontier.advance(self._handle, self.size)
        return self._frontier.digests()

    def restart(self, generation: int, *, whole: bool = False) -> tuple[int, int]:
        """Forget all bytes; `whole` makes the file one part.

        Returns:
            The new generation, and how many bytes were forgotten.

        Raises:
            SupersededError: another thread did so first.
        """
        with self._lock:
            self._check(generation)
            lost = sum(self._done)
            self._start_anew(self.size if whole else self._part_size)
            return self.generation, lost

    def commit(self) -> None:
        """Give the file its name, read-only: it may get more names, in snapshots."""
        os.fsync(self._handle)
        os.fchmod(self._handle, 0o444)
        self._partial.replace(self.place)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Remove the leftover."""
        self._partial.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the leftover and keep its bytes; calling it twice does no harm."""
        with self._lock:
            self.generation += 1
            self._frontier.retire()
            for handle in (self._handle, self._journal):
                if handle >= 0:
                    os.close(handle)
            self._handle = self._journal = -1

    def _check(self, generation: int) -> None:
        if generation != self.generation:
            raise SupersededError

    def _contiguous(self) -> int:
        count = len(self._done)
        while (
            self._first_open < count
            and self._done[self._first_open] == self.part(self._first_open).size
        ):
            self._first_open += 1
        if self._first_open == count:
            return self.size
        return self.part(self._first_open).start + self._done[self._first_open]

    def _start_anew(self, part_size: int) -> None:
        self.generation += 1
        self._part_size = part_size
        self._done = [0] * -(-self.size // part_size)
        self._first_open = 0
        self._finishing = False
        self._frontier.retire()
        self._frontier = _Frontier(self.size, git_id=self._git_id)
        # the counts go first: stale ones beside a new header would be believed
        os.ftruncate(self._journal, 0)
        os.ftruncate(self._handle, self.size)
        header = json.dumps(self._header()).encode().ljust(_HEADER)
        os.pwrite(self._journal, header + bytes(8 * len(self._done)), 0)

    def _header(self) -> dict[str, Any]:
        return {"identity": self._identity, "size": self.size, "part_size": self._part_size}

    def _read_journal(self) -> bool:
        if os.fstat(self._handle).st_size != self.size:
            return False
        data = os.pread(self._journal, _HEADER + 8 * _MOST_PARTS, 0)
        try:
            header = json.loads(data[:_HEADER])
            part_size = int(header["part_size"])
        except (ValueError, KeyError, TypeError):
            return False
        counts = data[_HEADER:]
        if part_size < 1 or len(counts) != 8 * -(-self.size // part_size):
            return False
        if header != self._header() | {"part_size": part_size}:
            return False
        self._part_size = part_size
        self._done = list(struct.unpack(f"<{len(counts) // 8}Q", counts))
        self.generation += 1
        return all(done <= part.size for done, part in zip(self._done, self.parts, strict=True))

    def _note(self, index: int) -> None:
        os.pwrite(self._journal, struct.pack("<Q", self._done[index]), _HEADER + 8 * index)


def leftovers(place: Path) -> tuple[Path, Path]:
    """The names beside `place` for its bytes, and for the count of them."""
    return place.with_name(f"{place.name}.partial"), place.with_name(f"{place.name}.parts.partial")


def bytes_on_disk(place: Path) -> int:
    """How much room a leftover of `place` takes already; holes do not count."""
    try:
        return leftovers(place)[0].stat().st_blocks * 512
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written

"""A file that several threads fill in byte ranges, and that survives being killed.

Beside the place: `<place>.partial` holds the bytes, `<place>.parts.partial` says which are there
(see `journal`). The bytes are written before their count, so a killed process has at least what it
counted; a count that a power cut made too large is found by the digest.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hub_tools.frontier import Digests, Frontier
from hub_tools.journal import MOST_PARTS, Cut, Journal, received_earlier

_WITHOUT_JOURNAL = 1 << 18  # a file this small is fetched again sooner than its state is kept
UNKNOWN_SERVER = 7  # an earlier run fetched it, and did not note from where


class SupersededError(Exception):
    """The file was started anew while this thread worked on an older try; drop the bytes."""


@dataclass(slots=True, eq=False)
class Lease:
    """A byte range that one thread fills from `position` on; others may shorten it meanwhile."""

    position: int
    end: int  # exclusive
    generation: int
    reserved: int = 0  # bytes before it are being written, where it is beyond `position`

    @property
    def left(self) -> int:
        return self.end - self.position


class PartialFile:
    """The bytes of one file on their way to `place`; open it with `try_open`, end with `close`.

    Args:
        place: the file's name once it is complete and verified.
        size: its length in bytes, above zero.
        identity: what the bytes are, such as a digest; leftovers of something else are dropped.
        part_size: how finely it is noted what is there; a leftover keeps the cut it was made with.
        git_id: compute the id of the git blob, too.
    """

    def __init__(
        self, place: Path, size: int, *, identity: str, part_size: int, git_id: bool = False
    ) -> None:
        self.place, self.size = place, size
        self.generation = 0
        self._git_id = git_id
        self._cut = Cut(identity, size, max(1, min(part_size, size), -(-size // MOST_PARTS)))
        self._partial, journal = leftovers(place)
        self._journal = Journal(journal if size > _WITHOUT_JOURNAL else None)
        self._lock = threading.Lock()
        # writing holds no lock, so that one slow write does not hold up the other connections
        self._idle = threading.Condition(self._lock)
        self._writing = 0
        self._handle = -1
        self._done: list[int] = []
        self._servers = bytearray()  # per part a bit for each source that brought some of it
        self._first_open = 0  # all parts before it are complete
        self._finishing = False
        self._frontier = Frontier(size, git_id=git_id)

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
        self._journal.open()
        complete = os.fstat(handle).st_size == self.size
        found = self._journal.read(self._cut.identity, self.size) if complete else None
        if found is None:
            self._start_anew()
        else:
            self._cut, self._done = found
            self._servers = bytearray(1 << UNKNOWN_SERVER if done else 0 for done in self._done)
            self.generation += 1
        return True

    @property
    def part_size(self) -> int:
        return self._cut.part_size

    @property
    def received(self) -> int:
        return sum(self._done)

    def missing(self) -> list[tuple[int, int]]:
        """Byte ranges (start, end) that are not there, in order; each ends where a part does."""
        ranges: list[tuple[int, int]] = []
        for index, done in enumerate(self._done):
            start, end = index * self.part_size, self._end(index)
            if start + done == end:
                continue
            if ranges and ranges[-1][1] == start and not done:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start + done, end))
        return ranges

    def lease(self, start: int, end: int) -> Lease:
        """Begin to fill a range of `missing`, or a piece of one that ends where a part does."""
        return Lease(start, end, self.generation)

    def split(self, lease: Lease, at: int) -> Lease | None:
        """Take the end of another thread's range away from it; from inside a part only all of it.

        Returns:
            The range taken; None when its owner was faster.
        """
        with self._lock:
            at = max(at, lease.position, lease.reserved)
            if at != lease.position:
                at = -(-at // self.part_size) * self.part_size
            if at >= lease.end or lease.generation != self.generation:
                return None
            taken = Lease(at, lease.end, lease.generation)
            lease.end = at
            return taken

    def write(self, lease: Lease, data: bytes, *, server: int = UNKNOWN_SERVER) -> int:
        """Append `data` to a range, up to its end; returns how many bytes of the range are left.

        Raises:
            SupersededError: the file was started anew.
        """
        with self._lock:
            self._check(lease.generation)
            view = memoryview(data)[: lease.left]
            offset, handle, frontier = lease.position, self._handle, self._frontier
            lease.reserved = offset + len(view)
            self._writing += 1
        written = 0
        try:
            _write_all(handle, view, offset)
            written = len(view)
        finally:
            with self._lock:
                lease.position = lease.reserved = offset + written
                self._count(offset, lease.position, server)
                left, limit = lease.left, self._contiguous()
                self._writing -= 1
                self._idle.notify_all()
        frontier.follow(handle, limit, offset, view)
        return left

    def claim_finish(self, generation: int) -> bool:
        """Whether all parts are complete, and the caller is the first to ask."""
        with self._lock:
            if generation != self.generation or self._finishing:
                return False
            self._finishing = self._contiguous() == self.size
            return self._finishing

    def digests(self) -> Digests:
        """Hash what is not hashed yet; for the one that may finish."""
        return self._frontier.digests(self._handle, self.size)

    def restart(self, generation: int) -> int:
        """Forget all bytes; returns how many.

        Raises:
            SupersededError: another thread did so first.
        """
        with self._lock:
            self._check(generation)
            self._supersede()
            lost = sum(self._done)
            self._start_anew()
            return lost

    def forget(self, parts: Iterable[int]) -> int:
        """Forget some parts, and the hash of all; returns how many bytes are forgotten."""
        with self._lock:
            self._supersede()
            lost = 0
            for index in parts:
                lost += self._done[index]
                self._done[index] = self._servers[index] = 0
                self._journal.note(index, 0)
            self._begin_generation()
            return lost

    def servers(self) -> bytes:
        """Per part, the set of sources that brought bytes of it, as bits."""
        return bytes(self._servers)

    def part_digest(self, index: int) -> bytes:
        """A short digest of one part as it is on disk."""
        digest = hashlib.blake2b(digest_size=16)
        position, end = index * self.part_size, self._end(index)
        while chunk := os.pread(self._handle, min(1 << 20, end - position), position):
            digest.update(chunk)
            position += len(chunk)
        return digest.digest()

    def commit(self) -> None:
        """Give the file its name, read-only: it may get more names, in snapshots."""
        os.fchmod(self._handle, 0o444)
        os.fsync(self._handle)
        self._partial.replace(self.place)
        self._journal.remove()
        self.close()

    def discard(self) -> None:
        """Remove the leftover."""
        self._partial.unlink(missing_ok=True)
        self._journal.remove()
        self.close()

    def close(self) -> None:
        """Let go of the leftover and keep its bytes; calling it twice does no harm."""
        with self._lock:
            self._supersede()
            self._frontier.retire()
            self._journal.close()
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1

    def _supersede(self) -> None:
        """Let nobody begin to write for an older try, and wait for those who did."""
        self.generation += 1
        self._idle.wait_for(lambda: not self._writing)

    def _check(self, generation: int) -> None:
        if generation != self.generation:
            raise SupersededError

    def _end(self, index: int) -> int:
        return min((index + 1) * self.part_size, self.size)

    def _count(self, start: int, end: int, server: int) -> None:
        if start == end:
            return
        first, last = start // self.part_size, (end - 1) // self.part_size
        for index in range(first, last + 1):
            self._done[index] = min(end, self._end(index)) - index * self.part_size
            self._servers[index] |= 1 << server
        self._journal.note(first, *self._done[first : last + 1])

    def _contiguous(self) -> int:
        count, size = len(self._done), self.part_size
        while (
            self._first_open < count
            and self._done[self._first_open]
            == self._end(self._first_open) - self._first_open * size
        ):
            self._first_open += 1
        if self._first_open == count:
            return self.size
        return self._first_open * size + self._done[self._first_open]

    def _start_anew(self) -> None:
        self._done = [0] * self._cut.parts
        self._servers = bytearray(self._cut.parts)
        self._begin_generation()
        self._journal.begin(self._cut)
        os.ftruncate(self._handle, self.size)

    def _begin_generation(self) -> None:
        self._first_open = 0
        self._finishing = False
        self._frontier.retire()
        self._frontier = Frontier(self.size, git_id=self._git_id)


def leftovers(place: Path) -> tuple[Path, Path]:
    """The names beside `place` for its bytes, and for the count of them."""
    return place.with_name(f"{place.name}.partial"), place.with_name(f"{place.name}.parts.partial")


def bytes_kept(place: Path, identity: str, size: int) -> int:
    """How many bytes of a file an earlier run left beside its place."""
    partial, journal = leftovers(place)
    return received_earlier(journal, identity, size) if partial.is_file() else 0


def bytes_on_disk(place: Path) -> int:
    """How much room a leftover of `place` takes already; holes do not count."""
    try:
        return leftovers(place)[0].stat().st_blocks * 512
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _write_all(handle: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written

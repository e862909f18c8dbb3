"""Which bytes of a file are there: a count per part, kept beside the file.

A JSON header of 1024 bytes, then one little-endian uint64 per part: how many bytes of the part are
there, from its start. The counts are mapped into memory, so noting one costs no system call, and a
killed process leaves what it noted.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER = 1024
MOST_PARTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Cut:
    """What the counts speak of: which bytes, and how they are cut into parts."""

    identity: str
    size: int
    part_size: int

    @property
    def parts(self) -> int:
        return -(-self.size // self.part_size)

    def json(self) -> bytes:
        header = {"identity": self.identity, "size": self.size, "part_size": self.part_size}
        return json.dumps(header).encode().ljust(_HEADER)


class Journal:
    """The counts of one file on its way, on disk; `path` None keeps none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._handle = -1
        self._map: mmap.mmap | None = None

    def open(self) -> None:
        if self._path is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._handle = os.open(self._path, flags, 0o644)

    def read(self, identity: str, size: int) -> tuple[Cut, list[int]] | None:
        """The cut and counts of an earlier run; None where they make no sense here."""
        if self._handle < 0:
            return None
        data = os.pread(self._handle, _HEADER + 8 * MOST_PARTS, 0)
        found = _parse(data, identity, size)
        if found is not None:
            self._map = mmap.mmap(self._handle, len(data))
        return found

    def begin(self, cut: Cut) -> None:
        """Write a new header and zero counts."""
        if self._handle < 0:
            return
        self._unmap()
        # the counts go first: stale ones beside a new header would be believed
        os.ftruncate(self._handle, 0)
        data = cut.json() + bytes(8 * cut.parts)
        os.pwrite(self._handle, data, 0)
        self._map = mmap.mmap(self._handle, len(data))

    def note(self, index: int, *counts: int) -> None:
        """Set the counts of parts from `index` on."""
        if self._map is not None:
            struct.pack_into(f"<{len(counts)}Q", self._map, _HEADER + 8 * index, *counts)

    def remove(self) -> None:
        if self._handle >= 0 and self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self._unmap()
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
        self._map = None


def received_earlier(path: Path, identity: str, size: int) -> int:
    """How many bytes an earlier run left, as its journal says; nothing is locked or opened."""
    try:
        with path.open("rb") as journal:
            found = _parse(journal.read(_HEADER + 8 * MOST_PARTS), identity, size)
    except OSError:
        return 0
    return sum(found[1]) if found else 0


def _parse(data: bytes, identity: str, size: int) -> tuple[Cut, list[int]] | None:
    counts = data[_HEADER:]
    try:
        part_size = int(json.loads(data[:_HEADER])["part_size"])
    except (ValueError, KeyError, TypeError):
        return None
    if part_size < 1:
        return None
    cut = Cut(identity, size, part_size)
    if cut.json() != data[:_HEADER] or len(counts) != 8 * cut.parts:
        return None
    done = list(struct.unpack(f"<{cut.parts}Q", counts))
    longest = [part_size] * (cut.parts - 1) + [size - part_size * (cut.parts - 1)]
    return (cut, done) if all(map(int.__le__, done, longest)) else None

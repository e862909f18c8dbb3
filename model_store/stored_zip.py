"""The entries of a zip archive whose contents lie in it as they are: byte ranges, no inflating.

Specification: APPNOTE.TXT 6.3. Only what torch writes is accepted: stored entries, one disk, no
encryption, nothing before, between or after them that another reader could take for an entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from model_store.errors import CheckpointError, UnsafeCheckpointError
from model_store.weight_file import WeightFile

MAX_ENTRIES = 100_000
_MAX_DIRECTORY = 16_000_000
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_GAP = 24  # signature, checksum, two sizes of 8 bytes
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_DESCRIPTOR = 0x0008
_ALLOWED_FLAGS = 0x0800 | _DESCRIPTOR  # UTF-8 names; sizes written after the data


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """Where an entry's bytes lie in the archive."""

    name: str
    start: int
    stop: int
    crc: int = 0  # torch writes 0 where it was told not to compute them

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class _Directory:
    start: int
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Central:
    name: bytes
    flags: int
    method: int
    size: int
    stored_size: int
    offset: int
    crc: int


def read_entries(file: WeightFile) -> dict[str, StoredEntry]:
    """List the entries of a stored zip archive by name.

    Raises:
        CheckpointError: no zip archive, or a truncated one.
        UnsafeCheckpointError: compressed, encrypted, overlapping, doubled or misdescribed entries.
    """
    directory = _directory(file)
    entries: dict[str, StoredEntry] = {}
    folded: set[str] = set()
    end, before = 0, None
    for central in sorted(_centrals(file, directory), key=lambda item: item.offset):
        entry = _entry(file, central, directory.start)
        if central.offset < end or (before is None and central.offset != 0):
            raise UnsafeCheckpointError(f"{file.path}: entry {entry.name!r} overlaps another")
        _check_gap(file, before, end, central.offset)
        end, before = entry.stop, central
        if entry.name.casefold() in folded:
            raise UnsafeCheckpointError(f"{file.path}: entry {entry.name!r} occurs twice")
        folded.add(entry.name.casefold())
        entries[entry.name] = entry
    _check_gap(file, before, end, directory.start)
    return entries


def _check_gap(file: WeightFile, before: _Central | None, start: int, stop: int) -> None:
    """Between two entries lies nothing, or the checksum and sizes of the one before."""
    if start == stop:
        return
    gap = file.head(start, stop) if stop - start <= _LONGEST_GAP else b""
    if before is not None and before.flags & _DESCRIPTOR and gap:
        for sizes in ("<3L", "<L2Q"):
            if before.size <= _FULL32 or sizes == "<L2Q":
                told = struct.pack(sizes, before.crc, before.size, before.size)
                if gap in (told, b"PK\x07\x08" + told):
                    return
    raise UnsafeCheckpointError(
        f"{file.path} holds {stop - start} bytes that no entry accounts for"
    )


def _directory(file: WeightFile) -> _Directory:
    at = file.size - _END.size
    if at < 0 or file.head(at, at + 4) != b"PK\x05\x06":
        raise CheckpointError(f"{file.path}: no zip directory at its end; cut short?")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack(file.head(at, file.size))
    if disk or first_disk or here != count or comment:
        raise UnsafeCheckpointError(f"{file.path}: a zip of several disks, or with a comment")
    end = at
    locator = file.head(max(at - _LOCATOR.size, 0), at)
    if locator.startswith(b"PK\x06\x07") and len(locator) == _LOCATOR.size:
        end, wide = _directory64(file, locator, at - _LOCATOR.size)
        given = (start, size, count)
        limits = (_FULL32, _FULL32, _FULL16)
        for short, long, full in zip(given, wide, limits, strict=True):
            if short not in (full, long):
                raise UnsafeCheckpointError(f"{file.path}: its two zip directories disagree")
        start, size, count = wide
    if start + size != end or count > MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise UnsafeCheckpointError(f"{file.path}: its zip directory is not where it says")
    return _Directory(start, size, count)


def _directory64(file: WeightFile, locator: bytes, end: int) -> tuple[int, tuple[int, int, int]]:
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1 or at + _END64.size != end:
        raise UnsafeCheckpointError(f"{file.path}: its zip64 directory is not where it says")
    magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack(
        file.head(at, end)
    )
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk or here != count:
        raise UnsafeCheckpointError(f"{file.path}: its zip64 directory is damaged")
    return at, (start, size, count)


def _centrals(file: WeightFile, directory: _Directory) -> Iterator[_Central]:
    data = file.head(directory.start, directory.start + directory.size)
    at = 0
    for _ in range(directory.entries):
        if at + _CENTRAL.size > len(data) or data[at : at + 4] != b"PK\x01\x02":
            raise UnsafeCheckpointError(f"{file.path}: its zip directory is damaged")
        fields = _CENTRAL.unpack_from(data, at)
        flags, method, crc, stored, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_size, extra_size, comment_size, disk = fields[10:14]
        at += _CENTRAL.size
        name, extra = data[at : at + name_size], data[at + name_size :][:extra_size]
        at += name_size + extra_size + comment_size
        size, stored, offset = _widened(extra, size, stored, fields[16])
        if disk or comment_size:
            raise UnsafeCheckpointError(f"{file.path}: a zip entry with a comment or a disk")
        yield _Central(name, flags, method, size, stored, offset, crc)
    if at != len(data):
        raise UnsafeCheckpointError(f"{file.path}: its zip directory holds unlisted bytes")


def _widened(extra: bytes, size: int, stored: int, offset: int) -> tuple[int, int, int]:
    """Replace the fields that did not fit 32 bits by those of the zip64 extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    fields = [size, stored, offset]
    for index, field in enumerate(fields):
        if field == _FULL32:
            fields[index] = next(values, field)
    return fields[0], fields[1], fields[2]


def _entry(file: WeightFile, central: _Central, directory_start: int) -> StoredEntry:
    shown = central.name.decode("utf-8", "replace")[:80]
    where = f"{file.path}: entry {shown!r}"
    if central.method != 0 or central.size != central.stored_size:
        raise UnsafeCheckpointError(f"{where} is compressed; weights are stored as they are")
    if central.flags & ~_ALLOWED_FLAGS:
        raise UnsafeCheckpointError(f"{where} is encrypted or patched")
    head_end = central.offset + _LOCAL.size
    if head_end > directory_start:
        raise UnsafeCheckpointError(f"{where} lies outside the archive")
    magic, _, flags, method, _, _, _, _, size, name_size, extra_size = _LOCAL.unpack(
        file.head(central.offset, head_end)
    )
    start = head_end + name_size + extra_size
    name = file.head(head_end, head_end + name_size)
    deferred = flags & _DESCRIPTOR and size == 0
    agrees = deferred or size in (central.size, _FULL32)
    if magic != b"PK\x03\x04" or (name, flags, method) != (central.name, central.flags, 0):
        raise UnsafeCheckpointError(f"{where} is described differently in two places")
    if not agrees or start + central.size > directory_start:
        raise UnsafeCheckpointError(f"{where} is larger than the archive says or holds")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnsafeCheckpointError(f"{where} has a name that is not UTF-8") from error
    return StoredEntry(text, start, start + central.size, central.crc)

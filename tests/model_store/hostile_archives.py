"""Torch files whose zip archive lies."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from model_store.errors import CheckpointError
from tests.model_store.hostile import (
    FLOATS,
    Hostile,
    patched,
    state_dict,
    tensor,
    torch_zip,
    zip_file,
)


def _doubled(folder: Path) -> Path:
    """Two entries of one name, which zipfile would warn about: the second is renamed in place."""
    path = torch_zip(folder / "pytorch_model.bin", extra=(("archive/data.pkX", b"\x80\x02}."),))
    path.write_bytes(path.read_bytes().replace(b"data.pkX", b"data.pkl"))
    return path


def _prepended(folder: Path) -> Path:
    path = torch_zip(folder / "pytorch_model.bin")
    path.write_bytes(b"PK\x03\x04" + bytes(60) + path.read_bytes())
    return path


def _in_front(folder: Path) -> Path:
    """An archive whose directory knows that another file stands before it."""
    made = io.BytesIO(b"PK\x03\x04" + bytes(60))
    with zipfile.ZipFile(made, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", state_dict(weight=tensor()))
        archive.writestr("archive/data/0", FLOATS)
    (folder / "pytorch_model.bin").write_bytes(made.getvalue())
    return folder / "pytorch_model.bin"


def _entry_in_entry(folder: Path) -> Path:
    """An entry whose record lies inside the data of another."""
    path = torch_zip(folder / "pytorch_model.bin", extra=(("archive/data/1", b"x"),))
    content = path.read_bytes()
    start = content.index(b"PK\x03\x04", content.index(b"archive/data/0"))
    record = content[start : content.index(b"PK\x01\x02")]
    outer = (("archive/data/2", record), ("archive/data/1", b"x"))
    content = torch_zip(path, extra=outer).read_bytes()
    name = content.rindex(b"archive/data/1")
    place = struct.pack("<I", content.index(record))
    path.write_bytes(content[: name - 4] + place + content[name:])
    return path


def _edited(folder: Path, edit: Callable[[bytes], bytes]) -> Path:
    path = torch_zip(folder / "pytorch_model.bin")
    path.write_bytes(edit(path.read_bytes()))
    return path


def _inserted(content: bytes, at: int, *, offsets: bool) -> bytes:
    """Eight bytes put in at `at`, the directory's offsets told truly."""
    end = content.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<L", content, end + 16)
    made = bytearray(content)
    struct.pack_into("<L", made, end + 16, start + 8)
    if offsets:  # the second entry moves
        second = content.index(b"PK\x01\x02", start + 4)
        (offset,) = struct.unpack_from("<L", content, second + 42)
        struct.pack_into("<L", made, second + 42, offset + 8)
    return bytes(made[:at] + b"\x80\x02}.    " + made[at:])


def _between(folder: Path) -> Path:
    return _edited(folder, lambda data: _inserted(data, data.index(b"PK\x03\x04", 4), offsets=True))


def _before_directory(folder: Path) -> Path:
    return _edited(folder, lambda data: _inserted(data, data.index(b"PK\x01\x02"), offsets=False))


def _after(folder: Path) -> Path:
    return _edited(folder, lambda data: data + b"x")


def _commented(folder: Path) -> Path:
    return _edited(folder, lambda data: data[:-2] + b"\1\0x")


def _local_size(folder: Path) -> Path:
    def edit(data: bytes) -> bytes:
        second = data.index(b"PK\x03\x04", 4)
        return data[: second + 22] + struct.pack("<L", 8) + data[second + 26 :]

    return _edited(folder, edit)


def _zip64_size(folder: Path) -> Path:
    def edit(data: bytes) -> bytes:
        at = data.rindex(b"PK\x01\x02")
        full = b"\xff" * 8
        name = data.index(b"archive/data/0", at)
        extra = struct.pack("<2H2Q", 1, 16, 2**62, 2**62)
        head = data[at : at + 20] + full + data[at + 28 : at + 30] + struct.pack("<H", len(extra))
        end = data.rindex(b"PK\x05\x06")
        (size,) = struct.unpack_from("<L", data, end + 12)
        told = data[end : end + 12] + struct.pack("<L", size + len(extra)) + data[end + 16 :]
        return data[:at] + head + data[at + 32 : name + 14] + extra + data[name + 14 : end] + told

    return _edited(folder, edit)


def _end_field(place: int, value: bytes) -> Callable[[Path], Path]:
    def edit(data: bytes) -> bytes:
        at = data.rindex(b"PK\x05\x06") + place
        return data[:at] + value + data[at + len(value) :]

    return lambda folder: _edited(folder, edit)


def _central_offset(folder: Path) -> Path:
    def edit(data: bytes) -> bytes:
        at = data.rindex(b"PK\x01\x02") + 42
        return data[:at] + struct.pack("<L", 2**31) + data[at + 4 :]

    return _edited(folder, edit)


ARCHIVES = (
    Hostile("deflated entries", zip_file(compression=zipfile.ZIP_DEFLATED), "compressed"),
    Hostile("two data.pkl", _doubled, "occurs twice"),
    Hostile("two data.pkl by case", zip_file(extra=(("archive/DATA.PKL", b""),)), "occurs twice"),
    Hostile(
        "a second data.pkl below", zip_file(extra=(("archive/x/data.pkl", b""),)), "2 data.pkl"
    ),
    Hostile("two folders", zip_file(extra=(("other/version", b"3"),)), "share one folder"),
    Hostile("TorchScript", zip_file(extra=(("archive/code/x.py", b""),)), "TorchScript"),
    Hostile(
        "a big-endian writer",
        zip_file(extra=(("archive/byteorder", b"big"),)),
        "big-endian",
        CheckpointError,
    ),
    Hostile(
        "a bomb of zeros",
        zip_file(compression=zipfile.ZIP_DEFLATED, data=bytes(10**7)),
        "compressed",
    ),
    Hostile("no data.pkl", patched(b"data.pkl", b"data.pkX", 2), "0 data.pkl"),
    Hostile(
        "a state dict that is damaged", patched(b"weight", b"weighs"), "checksum", CheckpointError
    ),
    Hostile("bytes between entries", _between, "no entry accounts for"),
    Hostile("bytes before the directory", _before_directory, "no entry accounts for"),
    Hostile("bytes after the archive", _after, "no zip directory at its end", CheckpointError),
    Hostile("an archive with a comment", _commented, "no zip directory|comment", CheckpointError),
    Hostile("a size that differs in two places", _local_size, "larger than the archive says"),
    Hostile("a zip64 size of 2^62", _zip64_size, "compressed|larger|damaged"),
    Hostile("a directory of 2^31 bytes", _end_field(12, b"\0\0\0\x80"), "not where it says"),
    Hostile("a directory of 65534 entries", _end_field(8, b"\xfe\xff\xfe\xff"), "damaged"),
    Hostile("two disks", _end_field(4, b"\1\0"), "several disks"),
    Hostile("an entry beyond the file", _central_offset, "outside the archive"),
    Hostile("an encrypted entry", patched(b"\x14\0\0\0\0\0", b"\x14\0\x01\0\0\0", 9), "encrypted"),
    Hostile("two names for one entry", patched(b"data/0", b"data/1"), "described differently"),
    Hostile("bytes before the archive", _prepended, "not where it says"),
    Hostile("bytes that the archive knows of", _in_front, "overlaps"),
    Hostile("an entry inside another", _entry_in_entry, "overlaps"),
)

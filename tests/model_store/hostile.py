"""Make weight files that lie, break or attack; each function writes one file and returns its path.

The files are built from bytes, not with torch or safetensors: those would not write them.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import CheckpointError, UnsafeCheckpointError

REBUILD = "torch._utils\n_rebuild_tensor_v2\n"
FLOATS = bytes(range(16))  # four float32


@dataclass(frozen=True, slots=True)
class Hostile:
    """A bad file: how to write it, and how it must be refused."""

    label: str
    write: Callable[[Path], Path]
    says: str  # a regular expression
    error: type[CheckpointError] = UnsafeCheckpointError


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", elements: int = 4, kind: str = "FloatStorage") -> bytes:
    named = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + named + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(
    *,
    held: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    call: str = REBUILD,
) -> bytes:
    """The opcodes that leave a tensor on the stack."""
    arguments = (held or storage()) + number(offset) + numbers(shape) + numbers(strides)
    return b"c" + call.encode() + b"(" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(**tensors: bytes) -> bytes:
    """A whole program: a dict of what the given opcodes leave on the stack."""
    items = b"".join(text(name) + made for name, made in tensors.items())
    return b"\x80\x02}(" + items + b"u."


def torch_zip(
    path: Path,
    program: bytes | None = None,
    *,
    data: bytes = FLOATS,
    extra: tuple[tuple[str, bytes], ...] = (),
    compression: int = zipfile.ZIP_STORED,
    entry: str = "archive/data/0",
) -> Path:
    """A torch zip file with one storage and any program."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program or state_dict(weight=tensor()))
        archive.writestr(entry, data)
        for name, content in extra:
            archive.writestr(name, content)
    path.write_bytes(made.getvalue())
    return path


def safetensors(path: Path, header: dict[str, Any] | str | bytes, data: bytes = FLOATS) -> Path:
    """A safetensors file with any header, its length told truly."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(
    start: int = 0, stop: int = 16, *, dtype: Any = "F32", shape: Any = (4,)
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def _program(program: bytes) -> Callable[[Path], Path]:
    return lambda folder: torch_zip(folder / "pytorch_model.bin", program)


def _tensor(**arguments: Any) -> Callable[[Path], Path]:
    return _program(state_dict(weight=tensor(**arguments)))


def _zip(**arguments: Any) -> Callable[[Path], Path]:
    return lambda folder: torch_zip(folder / "pytorch_model.bin", **arguments)


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _header(header: dict[str, Any] | str | bytes, data: bytes = FLOATS) -> Callable[[Path], Path]:
    return lambda folder: safetensors(folder / "model.safetensors", header, data)


def _patched(old: bytes, new: bytes, count: int = 1) -> Callable[[Path], Path]:
    """A good torch zip file with bytes of its zip records changed."""

    def write(folder: Path) -> Path:
        path = torch_zip(folder / "pytorch_model.bin")
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, count))
        return path

    return write


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


def _calls(module: str, name: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + text("true") + b"tR."


PICKLES = (
    Hostile("os.system", _program(_calls("os", "system")), "os.system"),
    Hostile("builtins.eval", _program(_calls("builtins", "eval")), "builtins.eval"),
    Hostile("import_module", _program(_calls("importlib", "import_module")), "importlib"),
    Hostile(
        "a global by STACK_GLOBAL",
        _program(b"\x80\x04" + text("os") + text("system") + b"\x93."),
        "os.system",
    ),
    Hostile("an extension code", _program(b"\x80\x02\x82\x01."), "EXT1"),
    Hostile("INST", _program(b"\x80\x02(ios\nsystem\n."), "INST"),
    Hostile("OBJ", _program(b"\x80\x02(]o."), "OBJ"),
    Hostile("NEWOBJ", _program(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "NEWOBJ"),
    Hostile(
        "a length of a terabyte", _program(b"\x80\x04\x8e" + b"\0" * 5 + b"\x01\0\0"), "broken"
    ),
    Hostile("a memo that was never stored", _program(b"\x80\x02j\xff\xff\xff\x7f."), "recalls"),
    Hostile("an empty stack", _program(b"\x80\x02R."), "empty stack"),
    Hostile("an unopened mark", _program(b"\x80\x02t."), "mark"),
    Hostile("deep nesting", _program(b"\x80\x02" + b"(" * 2000 + b"."), "deeply"),
    Hostile("SETITEM on a list", _program(b"\x80\x02]" + text("a") + b"Ns."), "no dict"),
    Hostile("BUILD with a tuple", _program(b"\x80\x02}(Nt" + b"b."), "BUILD"),
    Hostile("no STOP", _program(b"\x80\x02}"), "broken"),
    Hostile("values left over", _program(b"\x80\x02}}."), "leaves values"),
    Hostile("a tuple as a key", _program(b"\x80\x02}(NtNs."), "key of type tuple"),
    Hostile(
        "a name twice",
        _program(b"\x80\x02}(" + (text("a") + tensor()) * 2 + b"u."),
        "occurs twice",
    ),
    Hostile("a control character", _program(state_dict(**{"a\x1b[2J": tensor()})), "plain text"),
)
TENSORS = (
    Hostile("an offset beyond the storage", _tensor(offset=1), "reaches beyond"),
    Hostile("strides beyond the storage", _tensor(shape=(2, 2), strides=(3, 1)), "reaches beyond"),
    Hostile("a negative offset", _tensor(offset=-1), "negative"),
    Hostile("a negative stride", _tensor(strides=(-1,)), "negative"),
    Hostile("a negative size", _tensor(shape=(-4,)), "negative"),
    Hostile("a size beyond 63 bits", _tensor(shape=(2**64,)), "strange"),
    Hostile("strides for another shape", _tensor(strides=(2, 1)), "disagree"),
    Hostile("a bomb of stride 0", _tensor(shape=(2**40,), strides=(0,)), "repeats its storage"),
    Hostile(
        "an overlapping bomb", _tensor(shape=(4, 2**40), strides=(1, 0)), "repeats its storage"
    ),
    Hostile("a storage that is too small", _tensor(held=storage(elements=5)), "16 bytes"),
    Hostile(
        "a storage that is too large",
        _tensor(held=storage(elements=3), shape=(3,)),
        "16 bytes",
    ),
    Hostile("a storage that is missing", _tensor(held=storage(key="7")), "not in the archive"),
    Hostile(
        "a storage outside the folder", _tensor(held=storage(key="../0")), "not in the archive"
    ),
    Hostile("a storage of no known type", _tensor(held=storage(kind="QInt8Storage")), "QInt8"),
    Hostile("a persistent id of one part", _tensor(held=text("0") + b"Q"), "not described"),
    Hostile("another rebuilder", _tensor(call="torch._utils\n_rebuild_sparse_tensor\n"), "sparse"),
    Hostile("a tensor of no storage", _tensor(held=b"N"), "a call of torch"),
)
ARCHIVES = (
    Hostile("deflated entries", _zip(compression=zipfile.ZIP_DEFLATED), "compressed"),
    Hostile("two data.pkl", _doubled, "occurs twice"),
    Hostile("two data.pkl by case", _zip(extra=(("archive/DATA.PKL", b""),)), "occurs twice"),
    Hostile("a second data.pkl below", _zip(extra=(("archive/x/data.pkl", b""),)), "2 data.pkl"),
    Hostile("two folders", _zip(extra=(("other/version", b"3"),)), "share one folder"),
    Hostile("TorchScript", _zip(extra=(("archive/code/x.py", b""),)), "TorchScript"),
    Hostile(
        "a big-endian writer",
        _zip(extra=(("archive/byteorder", b"big"),)),
        "big-endian",
        CheckpointError,
    ),
    Hostile("an encrypted entry", _patched(b"\x14\0\0\0\0\0", b"\x14\0\x01\0\0\0", 9), "encrypted"),
    Hostile("two names for one entry", _patched(b"data/0", b"data/1"), "described differently"),
    Hostile("bytes before the archive", _prepended, "not where it says"),
    Hostile("bytes that the archive knows of", _in_front, "overlaps"),
    Hostile("an entry inside another", _entry_in_entry, "overlaps"),
)
SAFETENSORS = (
    Hostile("an overlap", _header({"a": entry(), "b": entry()}), "overlaps"),
    Hostile(
        "a hole",
        _header({"a": entry(0, 4, shape=[1]), "b": entry(8, 16, shape=[2])}),
        "hole",
    ),
    Hostile("a hole in front", _header({"a": entry(4, 16, shape=[3])}), "hole"),
    Hostile("trailing bytes", _header({"a": entry()}, FLOATS + b"x"), "after the last tensor"),
    Hostile("data cut short", _header({"a": entry()}, FLOATS[:9]), "cut short", CheckpointError),
    Hostile("a shape that disagrees", _header({"a": entry(shape=[5])}), "disagree"),
    Hostile("a negative size", _header({"a": entry(shape=[-4])}), "shape"),
    Hostile("a size that is no integer", _header({"a": entry(shape=[4.0])}), "shape"),
    Hostile("a size that is true", _header({"a": entry(0, 4, shape=[True])}), "shape"),
    Hostile("sizes beyond 63 bits", _header({"a": entry(0, 0, shape=[2**70, 0])}), "shape"),
    Hostile("offsets in reverse", _header({"a": entry(16, 0)}), "data_offsets"),
    Hostile("an unknown dtype", _header({"a": entry(dtype="F128")}), "dtype", CheckpointError),
    Hostile(
        "a dtype that is a list", _header({"a": entry(dtype=["F32"])}), "dtype", CheckpointError
    ),
    Hostile("an unknown field", _header({"a": {**entry(), "code": "x"}}), "exactly"),
    Hostile("a missing field", _header({"a": {"dtype": "F32", "shape": [4]}}), "exactly"),
    Hostile("a tensor that is a list", _header({"a": [1]}), "exactly"),
    Hostile("an empty name", _header({"": entry()}), "name"),
    Hostile("a control character", _header({"a\n": entry()}), "control"),
    Hostile("metadata of numbers", _header({"__metadata__": {"a": 1}, "b": entry()}), "metadata"),
    Hostile("a name twice", _header('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2)), "twice"),
    Hostile("JSON that does not end", _header('{"a":'), "JSON"),
    Hostile("bytes that are not UTF-8", _header(b'{"\xff":1}'), "JSON"),
    Hostile("a header of depth 100000", _header('{"a":' + "[" * 100_000), "JSON"),
    Hostile(
        "a header of 2^63 bytes",
        _bytes("model.safetensors", struct.pack("<Q", 2**63) + b"{}" + bytes(16)),
        "over the limit",
    ),
    Hostile(
        "a header past the end",
        _bytes("model.safetensors", struct.pack("<Q", 400) + b"{}" + bytes(16)),
        "ends inside",
        CheckpointError,
    ),
    Hostile("a leading space", _header(' {"a":1}'), "not a safetensors file", CheckpointError),
)
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
NOT_WEIGHTS = (
    Hostile("a bare pickle", _bytes("m.bin", b"\x80\x02}q\x00."), "bare pickle", CheckpointError),
    Hostile("an empty file", _bytes("m.bin", b""), "empty", CheckpointError),
    Hostile(
        "an LFS pointer as .bin", _bytes("m.bin", _POINTER), "git-lfs pointer", CheckpointError
    ),
    Hostile(
        "an LFS pointer as .safetensors",
        _bytes("m.safetensors", _POINTER),
        "git-lfs pointer",
        CheckpointError,
    ),
    Hostile(
        "a web page",
        _bytes("m.safetensors", b"\n<!DOCTYPE html><title>404</title>"),
        "web page",
        CheckpointError,
    ),
    Hostile(
        "a torch file named .safetensors",
        lambda folder: torch_zip(folder / "m.safetensors"),
        "zip archive",
        CheckpointError,
    ),
    Hostile(
        "a zip cut short", _bytes("m.bin", b"PK\x03\x04" + bytes(99)), "cut short", CheckpointError
    ),
)

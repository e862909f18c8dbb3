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
    start: Any = 0, stop: int = 16, *, dtype: Any = "F32", shape: Any = (4,)
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def program(opcodes: bytes) -> Callable[[Path], Path]:
    return lambda folder: torch_zip(folder / "pytorch_model.bin", opcodes)


def tensor_file(**arguments: Any) -> Callable[[Path], Path]:
    return program(state_dict(weight=tensor(**arguments)))


def zip_file(**arguments: Any) -> Callable[[Path], Path]:
    return lambda folder: torch_zip(folder / "pytorch_model.bin", **arguments)


def plain(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def header(value: dict[str, Any] | str | bytes, data: bytes = FLOATS) -> Callable[[Path], Path]:
    return lambda folder: safetensors(folder / "model.safetensors", value, data)


def patched(old: bytes, new: bytes, count: int = 1) -> Callable[[Path], Path]:
    """A good torch zip file with bytes of its zip records changed."""

    def write(folder: Path) -> Path:
        path = torch_zip(folder / "pytorch_model.bin")
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, count))
        return path

    return write

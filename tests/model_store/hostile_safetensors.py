"""Safetensors files that lie, and files that are no weights at all."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

from model_store.errors import CheckpointError
from tests.model_store.hostile import FLOATS, Hostile, entry, header, plain, safetensors, torch_zip


def _nothings(folder: Path) -> Path:
    value = {f"t{n}": entry(0, 0, shape=[2**40, 0]) for n in range(100_000)}
    return safetensors(folder / "model.safetensors", value, b"")


def _many_lists(folder: Path) -> Path:
    return header('{"a":[' + "[]," * 250_000 + "[]]}")(folder)


def _tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"\x80\x02}."))
    return made.getvalue()


SAFETENSORS = (
    Hostile("an overlap", header({"a": entry(), "b": entry()}), "overlaps"),
    Hostile(
        "a hole",
        header({"a": entry(0, 4, shape=[1]), "b": entry(8, 16, shape=[2])}),
        "hole",
    ),
    Hostile("a hole in front", header({"a": entry(4, 16, shape=[3])}), "hole"),
    Hostile(
        "half an overlap",
        header({"a": entry(0, 12, shape=[3]), "b": entry(8, 16, shape=[2])}),
        "overlaps",
    ),
    Hostile("a negative offset in the header", header({"a": entry(-4, 12)}), "data_offsets"),
    Hostile("an offset that is text", header({"a": entry("0", 16)}), "data_offsets"),
    Hostile("three offsets", header({"a": {**entry(), "data_offsets": [0, 8, 16]}}), "offsets"),
    Hostile("a product beyond 2^64", header({"a": entry(0, 0, shape=[2**40] * 3)}), "disagree"),
    Hostile("a header ended by NUL", header(json.dumps({"a": entry()}) + "\0"), "JSON"),
    Hostile("a second JSON value", header(json.dumps({"a": entry()}) + "{}"), "JSON"),
    Hostile("metadata that is a list", header({"__metadata__": [], "b": entry()}), "metadata"),
    Hostile("a number of 5000 digits", header('{"a":' + "1" * 5000 + "}"), "JSON"),
    Hostile("NaN in the header", header('{"a":NaN}'), "JSON"),
    Hostile("a name that climbs, in the header", header({"../../x": entry()}), "path out"),
    Hostile("an absolute name", header({"/etc/x": entry()}), "path out"),
    Hostile("a name that recolours", header({"a\x1b[31m": entry()}), "control"),
    Hostile("100 000 tensors of no bytes", _nothings, "more tensors"),
    Hostile("a quarter of a million empty lists", _many_lists, "more tensors"),
    Hostile(
        "a header of 33 MB",
        plain("model.safetensors", struct.pack("<Q", 33_000_000) + b"{}" + bytes(16)),
        "over the limit",
    ),
    Hostile(
        "a header over 100 MB",
        plain("model.safetensors", struct.pack("<Q", 100_000_001) + b"{}" + bytes(16)),
        "over the limit",
    ),
    Hostile(
        "a header of no bytes",
        plain("model.safetensors", bytes(8) + FLOATS),
        "not a safetensors file",
        CheckpointError,
    ),
    Hostile("trailing bytes", header({"a": entry()}, FLOATS + b"x"), "after the last tensor"),
    Hostile("data cut short", header({"a": entry()}, FLOATS[:9]), "cut short", CheckpointError),
    Hostile("a shape that disagrees", header({"a": entry(shape=[5])}), "disagree"),
    Hostile("a negative size in the header", header({"a": entry(shape=[-4])}), "shape"),
    Hostile("a size that is no integer", header({"a": entry(shape=[4.0])}), "shape"),
    Hostile("a size that is true", header({"a": entry(0, 4, shape=[True])}), "shape"),
    Hostile("sizes beyond 63 bits", header({"a": entry(0, 0, shape=[2**70, 0])}), "shape"),
    Hostile("offsets in reverse", header({"a": entry(16, 0)}), "data_offsets"),
    Hostile("an unknown dtype", header({"a": entry(dtype="F128")}), "dtype", CheckpointError),
    Hostile(
        "a dtype that is a list", header({"a": entry(dtype=["F32"])}), "dtype", CheckpointError
    ),
    Hostile("an unknown field", header({"a": {**entry(), "code": "x"}}), "exactly"),
    Hostile("a missing field", header({"a": {"dtype": "F32", "shape": [4]}}), "exactly"),
    Hostile("a tensor that is a list", header({"a": [1]}), "exactly"),
    Hostile("an empty name", header({"": entry()}), "name"),
    Hostile("a control character in the header", header({"a\n": entry()}), "control"),
    Hostile("metadata of numbers", header({"__metadata__": {"a": 1}, "b": entry()}), "metadata"),
    Hostile(
        "a name twice in the header",
        header('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2)),
        "twice",
    ),
    Hostile("JSON that does not end", header('{"a":'), "JSON"),
    Hostile("bytes that are not UTF-8", header(b'{"\xff":1}'), "JSON"),
    Hostile("a header of depth 100000", header('{"a":' + "[" * 100_000), "JSON"),
    Hostile(
        "a header of 2^63 bytes",
        plain("model.safetensors", struct.pack("<Q", 2**63) + b"{}" + bytes(16)),
        "over the limit",
    ),
    Hostile(
        "a header past the end",
        plain("model.safetensors", struct.pack("<Q", 400) + b"{}" + bytes(16)),
        "ends inside",
        CheckpointError,
    ),
    Hostile("a leading space", header(' {"a":1}'), "not a safetensors file", CheckpointError),
)
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


NOT_WEIGHTS = (
    Hostile("a bare pickle", plain("m.bin", b"\x80\x02}q\x00."), "bare pickle", CheckpointError),
    Hostile("a tar archive", plain("m.pt", _tar()), "tar archive", CheckpointError),
    Hostile("an empty file", plain("m.bin", b""), "empty", CheckpointError),
    Hostile("an LFS pointer as .bin", plain("m.bin", _POINTER), "git-lfs pointer", CheckpointError),
    Hostile(
        "an LFS pointer as .safetensors",
        plain("m.safetensors", _POINTER),
        "git-lfs pointer",
        CheckpointError,
    ),
    Hostile(
        "a web page",
        plain("m.safetensors", b"\n<!DOCTYPE html><title>404</title>"),
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
        "a zip cut short", plain("m.bin", b"PK\x03\x04" + bytes(99)), "cut short", CheckpointError
    ),
)

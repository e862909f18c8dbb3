"""Make folders whose index, links or files lie; each function fills a folder and returns it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_store.errors import CheckpointError
from tests.model_store.hostile import FLOATS, Hostile, entry, safetensors, torch_zip

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def shards(folder: Path) -> Path:
    """Two shards, `a` and `b`, and a true index."""
    folder.mkdir(exist_ok=True)
    safetensors(folder / ONE, {"a": entry()})
    safetensors(folder / TWO, {"b": entry()})
    return index(folder, {"a": ONE, "b": TWO})


def index(folder: Path, weight_map: dict[str, Any], **more: Any) -> Path:
    """Write an index; returns the folder."""
    value = {"metadata": {"total_size": 32}, "weight_map": weight_map, **more}
    (folder / INDEX).write_text(json.dumps(value), encoding="utf-8")
    return folder


def _indexed(weight_map: dict[str, Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return index(shards(folder / "model"), weight_map)

    return write


def _outside(name: str) -> Callable[[Path], Path]:
    """An index that names a good file which is not in its folder."""

    def write(folder: Path) -> Path:
        safetensors(folder / "good.safetensors", {"a": entry()})
        inner = folder / "model"
        inner.mkdir()
        return index(inner, {"a": name})

    return write


def _absolute(folder: Path) -> Path:
    return _outside(str(folder / "good.safetensors"))(folder)


def _text(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = shards(folder / "model")
        (made / INDEX).write_text(content, encoding="utf-8")
        return made

    return write


def _linked(name: str, target: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = shards(folder / "model")
        (folder / "outside").mkdir()
        safetensors(folder / "outside" / TWO, {"b": entry()})
        (made / TWO).unlink()
        (made / name).symlink_to(folder / "outside" / target)
        return index(made, {"a": ONE, "b": TWO if name == TWO else f"{name}/{TWO}"})

    return write


def _single_link(folder: Path) -> Path:
    made = folder / "model"
    made.mkdir()
    safetensors(folder / "good.safetensors", {"a": entry()})
    (made / "model.safetensors").symlink_to("../good.safetensors")
    return made


def _index_link(folder: Path) -> Path:
    made = shards(folder / "model")
    (made / INDEX).rename(folder / INDEX)
    (made / INDEX).symlink_to(folder / INDEX)
    return made


def _pipe(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = shards(folder / "model") if name != "model.safetensors" else folder
        (made / name).unlink(missing_ok=True)
        os.mkfifo(made / name)
        return made

    return write


def _missing(folder: Path) -> Path:
    made = shards(folder / "model")
    (made / TWO).unlink()
    return made


def _extra(folder: Path) -> Path:
    made = shards(folder / "model")
    safetensors(made / "model-00003-of-00003.safetensors", {"c": entry()})
    return made


def _twice(folder: Path) -> Path:
    made = shards(folder / "model")
    header = {"a": entry(), "b": entry(16, 32)}
    safetensors(made / TWO, header, FLOATS + FLOATS[::-1])
    return made


def _both(folder: Path) -> Path:
    made = shards(folder / "model")
    safetensors(made / "model.safetensors", {"a": entry()})
    return made


def _no_index(folder: Path) -> Path:
    made = shards(folder / "model")
    (made / INDEX).unlink()
    return made


def _pickle_shard(folder: Path) -> Path:
    made = shards(folder / "model")
    torch_zip(made / "weights.pkl")
    return index(made, {"a": ONE, "weight": "weights.pkl"})


def _cased(folder: Path) -> Path:
    made = shards(folder / "model")
    (made / TWO).rename(made / ONE.upper())
    return index(made, {"a": ONE, "b": ONE.upper()})


FOLDERS = (
    Hostile("a shard above the folder", _outside("../good.safetensors"), "'..'"),
    Hostile("a shard by its absolute path", _absolute, "absolute"),
    Hostile("a shard by backslashes", _outside("..\\good.safetensors"), "not POSIX"),
    Hostile("a shard on a drive", _outside("C:good.safetensors"), "not POSIX"),
    Hostile("a shard on a server", _outside("\\\\host\\share\\good.safetensors"), "not POSIX"),
    Hostile("a shard that is a device on Windows", _outside("nul.safetensors"), "device"),
    Hostile("a shard without a name", _outside(""), "empty"),
    Hostile("a shard with a control character", _outside("a\x1b.safetensors"), "control"),
    Hostile("shards that differ in case only", _cased, "case is ignored"),
    Hostile("a shard that is a link out", _linked(TWO, TWO), "leaves its folder"),
    Hostile("a shard behind a link", _linked("link", "."), "symbolic link"),
    Hostile("a lone file that is a link out", _single_link, "leaves its folder"),
    Hostile("an index that is a link out", _index_link, "leaves its folder"),
    Hostile("a pipe for a file", _pipe("model.safetensors"), "no plain file", CheckpointError),
    Hostile("a pipe for a shard", _pipe(TWO), "is missing", CheckpointError),
    Hostile("a pipe for the index", _pipe(INDEX), "2 weight files", CheckpointError),
    Hostile("a shard that is missing", _missing, "is missing", CheckpointError),
    Hostile("a shard that no index lists", _extra, "does not list", CheckpointError),
    Hostile("shards without an index", _no_index, "2 weight files", CheckpointError),
    Hostile("a whole file beside the shards", _both, "both", CheckpointError),
    Hostile("a shard of another kind", _pickle_shard, "no weight file"),
    Hostile("a tensor in another shard", _indexed({"a": TWO, "b": ONE}), "the index says"),
    Hostile("a tensor in two shards, different", _twice, "'a'"),
    Hostile(
        "a tensor that no shard holds",
        _indexed({"a": ONE, "b": TWO, "ghost": TWO}),
        "'ghost'",
        CheckpointError,
    ),
    Hostile(
        "a tensor that the index leaves out",
        _indexed({"a": ONE, "c": TWO}),
        "does not list tensor 'b'",
        CheckpointError,
    ),
    Hostile("an index that is a list", _text("[]"), "no weight_map", CheckpointError),
    Hostile("an index cut short", _text('{"weight_map": {"a"'), "not valid JSON", CheckpointError),
    Hostile("an index of no tensors", _indexed({}), "no weight_map", CheckpointError),
    Hostile("an index of numbers", _indexed({"a": 1}), "file names", CheckpointError),
    Hostile(
        "an index with a name twice",
        _text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}'),
        "twice",
        CheckpointError,
    ),
    Hostile("an index 10 000 deep", _text('{"a":' * 10_000), "nested"),
    Hostile("an index 900 deep", _text('{"a":' * 900), "not valid JSON", CheckpointError),
)

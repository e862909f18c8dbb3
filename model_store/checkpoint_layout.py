"""Find a checkpoint's weight files: which of a folder's files count, and what its index says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.canonical import parse_json
from model_store.errors import CheckpointError, StoreError, UnsafeCheckpointError, UnsafePathError
from model_store.paths import check_paths, inside

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# single files that trainers put beside the weights
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
_MAX_INDEX = 32_000_000
_MAX_CONTAINERS = 1000  # JSON objects and lists: an index is flat
# (index, single file, pattern of last resort), safetensors first
_LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors", "*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "*.bin"),
    ("pytorch_model.pt.index.json", "pytorch_model.pt", "*.pt"),
    ("pytorch_model.pth.index.json", "pytorch_model.pth", "*.pth"),
)


@dataclass(frozen=True, slots=True)
class ShardList:
    """The weight files in order and, when there is an index, tensor name -> file."""

    files: tuple[Path, ...]
    weight_map: Mapping[str, Path] | None = None
    total_size: int | None = None  # what the index says that all tensors take


def shard_list(path: Path) -> ShardList:
    """Find the weight files of a folder, an index file or a single weight file.

    Raises:
        CheckpointError: no weights, or several that compete.
        UnsafeCheckpointError: an index that names a file outside its folder.
    """
    if path.is_file():
        if path.name.endswith(".index.json"):
            return _indexed(path)
        if path.suffix not in _SUFFIXES:
            raise CheckpointError(f"{path} is no weight file ({', '.join(_SUFFIXES)})")
        return ShardList((path,))
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    for index, single, pattern in _LAYOUTS:
        found = _in_folder(path, index, single, pattern)
        if found is not None:
            return found
    raise CheckpointError(
        f"{path} holds no weights", hint="Name a folder with safetensors or torch .bin files."
    )


def rival_lists(folder: Path) -> list[ShardList]:
    """Find weights of other formats beside those that `shard_list` takes, by their usual names."""
    named = [
        found
        for index, single, _ in _LAYOUTS
        if (found := _in_folder(folder, index, single, "")) is not None
    ]
    chosen = shard_list(folder)
    return [found for found in named if found.files != chosen.files]


def _in_folder(folder: Path, index: str, single: str, pattern: str) -> ShardList | None:
    has_index, has_single = (folder / index).is_file(), (folder / single).is_file()
    if has_index:
        shards = _indexed(folder / index)
        if has_single and folder / single not in shards.files:
            # readers differ in which of the two they take
            raise CheckpointError(
                f"{folder} holds both {single} and {index}",
                hint="Name the file that you mean, or remove the other.",
            )
        _check_unlisted(folder / index, Path(single), shards.files)
        return shards
    if has_single:
        return ShardList((_at_home(folder / single),))
    files = folder.glob(pattern) if pattern else ()
    others = sorted(file for file in files if file.name not in _NOT_WEIGHTS)
    if len(others) > 1:
        names = ", ".join(file.name for file in others[:3])
        raise CheckpointError(
            f"{folder} holds {len(others)} weight files and no {index}: {names}",
            hint="Get the index file too, or name one weight file.",
        )
    return ShardList(tuple(map(_at_home, others))) if others else None


def _check_unlisted(index: Path, single: Path, listed: tuple[Path, ...]) -> None:
    """Refuse a file that is named as a shard and is none: what it holds would go missing."""
    for file in sorted(index.parent.glob(f"{single.stem}-*-of-*{single.suffix}")):
        if file not in listed:
            raise CheckpointError(
                f"{file} is named as a shard, and {index.name} does not list it",
                hint="Get the index that belongs to the shards, or remove what is left over.",
            )


def _indexed(index: Path) -> ShardList:
    weight_map, total_size = _parsed(_at_home(index))
    try:
        check_paths(sorted(set(weight_map.values())))
    except UnsafePathError as error:
        raise UnsafeCheckpointError(f"{index}: {error}") from error
    files = {name: _shard(index, name) for name in set(weight_map.values())}
    missing = next((name for name in sorted(files) if not files[name].is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{index.parent / missing} is missing, and {index.name} lists it")
    wrong = next((name for name in sorted(files) if files[name].suffix not in _SUFFIXES), None)
    if wrong is not None:
        raise UnsafeCheckpointError(f"{index} lists {wrong!r}, which is no weight file")
    ordered = tuple(files[name] for name in sorted(files))
    for file in ordered:
        _at_home(file)
    return ShardList(ordered, {name: files[f] for name, f in weight_map.items()}, total_size)


def _at_home(file: Path) -> Path:
    """Refuse a link that leads out of its folder, but for the blobs of a hub's cache.

    There `models--owner--name/snapshots/<commit>/file` is a link to `models--owner--name/blobs/…`.
    """
    home, real = file.parent.resolve(), file.resolve()
    cached = [home.parents[1] / "blobs"] if len(home.parents) > 1 else []
    if not any(real.is_relative_to(place) for place in (home, *cached)):
        raise UnsafeCheckpointError(f"{file} is a symbolic link that leaves its folder")
    return file


def _shard(index: Path, name: str) -> Path:
    try:
        return inside(index.parent, name)
    except UnsafePathError as error:
        raise UnsafeCheckpointError(f"{index}: {error}") from error


def _parsed(index: Path) -> tuple[dict[str, str], int | None]:
    """The index's map of files, and its total size when it states one."""
    if index.stat().st_size > _MAX_INDEX:
        raise UnsafeCheckpointError(f"{index} is too large for an index")
    data = index.read_bytes()
    if data.count(b"{") + data.count(b"[") > _MAX_CONTAINERS:
        raise UnsafeCheckpointError(f"{index} is nested as no index is")
    try:
        value: Any = parse_json(data, name=str(index))
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map is not a map of file names")
    metadata = value.get("metadata")
    total: Any = metadata.get("total_size") if isinstance(metadata, dict) else None
    stated = isinstance(total, int | float) and not isinstance(total, bool)
    return weight_map, int(total) if stated and 0 <= total < 2**63 else None

"""Commits of the local hub: a listing with parents, named by what it says and by nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.canonical import canonical_json, parse_json
from model_store.errors import StoreError
from model_store.files import write_bytes
from model_store.paths import check_paths

COMMIT_ID = re.compile(r"[0-9a-f]{40}\Z")
_REGULAR_LIMIT = 10_000_000  # hubs keep larger files out of git, whatever their name
_LFS_SUFFIXES = frozenset(
    {
        ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib",
        ".model", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle",
        ".pkl", ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz",
        ".zip", ".zst",
    }
)  # fmt: skip


def is_lfs(path: str, size: int) -> bool:
    """Whether the hubs would store a file outside git: weights, archives, anything large."""
    return size > _REGULAR_LIMIT or PurePosixPath(path).suffix.lower() in _LFS_SUFFIXES


def git_blob_id(data: bytes) -> str:
    """The sha1 that git gives a file with these bytes."""
    header = b"blob %d\0" % len(data)
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The git-lfs pointer file that stands in git for an LFS object."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a commit; `oid` is git's id of what git would store (a pointer for LFS)."""

    path: str
    size: int
    sha256: str
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "sha256": self.sha256,
            "oid": self.oid,
            "lfs": self.lfs,
        }


def lfs_entry(path: str, size: int, sha256: str) -> Entry:
    return Entry(path, size, sha256, git_blob_id(pointer(sha256, size)), lfs=True)


@dataclass(frozen=True)  # without slots, so that the id can be kept
class Commit:
    """One state of a repository. `created` is shown to clients and is no part of the id."""

    parents: tuple[str, ...]
    files: tuple[Entry, ...]  # sorted by path, which make_commit sees to
    message: str
    created: float

    @cached_property
    def id(self) -> str:
        listing = [
            {"path": e.path, "size": e.size, "sha256": e.sha256, "lfs": e.lfs} for e in self.files
        ]
        named = {"parents": list(self.parents), "files": listing, "message": self.message}
        return hashlib.sha1(canonical_json(named), usedforsecurity=False).hexdigest()

    def entry(self, path: str) -> Entry | None:
        return self._by_path.get(path)

    @cached_property
    def _by_path(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.files}

    def json(self) -> dict[str, Any]:
        return {
            "parents": list(self.parents),
            "files": [entry.json() for entry in self.files],
            "message": self.message,
            "created": self.created,
        }


def make_commit(
    files: Iterable[Entry], *, parents: Sequence[str], message: str, created: float
) -> Commit:
    """Build a commit from entries in any order.

    Raises:
        UnsafePathError: the paths cannot live together in one folder on every system.
    """
    entries = tuple(sorted(files, key=lambda entry: entry.path))
    check_paths(entry.path for entry in entries)
    return Commit(tuple(parents), entries, message, created)


def write_commit(folder: Path, commit: Commit) -> str:
    """Write a commit under its id, unless it is there; return the id."""
    name = commit.id
    target = folder / f"{name}.json"
    if not target.exists():
        write_bytes(target, canonical_json(commit.json()))
    return name


@lru_cache(maxsize=256)  # commit files never change
def read_commit(path: Path) -> Commit:
    """Read a commit and check that it is the one its name says.

    Raises:
        StoreError: the file is damaged.
    """
    value = parse_json(path.read_bytes(), name=str(path))
    try:
        commit = Commit(
            parents=tuple(value["parents"]),
            files=tuple(
                Entry(f["path"], f["size"], f["sha256"], f["oid"], f["lfs"]) for f in value["files"]
            ),
            message=value["message"],
            created=float(value["created"]),
        )
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a commit: {error!r}") from error
    if commit.id != path.stem:
        raise StoreError(f"{path} is damaged: it hashes to {commit.id}")
    return commit

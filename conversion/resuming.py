"""What a killed rewriting leaves behind, and how much of it still stands.

One JSON line per weight file that has its name: its digest, its tensors' digests and the counts of
its tensors. The folder itself belongs to one plan (see `new_snapshot`), so a line needs no more.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from conversion.tally import Tally
from model_store.canonical import parse_json
from model_store.errors import StoreError
from model_store.files import sha256_file
from model_store.manifest import FileEntry, TensorDigest
from model_store.paths import inside
from model_store.snapshot_folder import is_note

_JOURNAL = "journal.partial"


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A weight file that has its name, its tensors in the order of the plan."""

    file: FileEntry
    tensors: Mapping[str, TensorDigest]
    tally: Mapping[str, Mapping[str, int]]

    def json(self) -> dict[str, Any]:
        return {
            **self.file.json(),
            # a list: the order is the plan's
            "tensors": [[name, digest.json()] for name, digest in self.tensors.items()],
            "tally": {kind: dict(counts) for kind, counts in self.tally.items()},
        }


class Written(Protocol):
    """What the journal asks a writer."""

    @property
    def shards(self) -> tuple[Any, ...]: ...

    @property
    def finished(self) -> Mapping[str, FileEntry]: ...

    @property
    def digests(self) -> Mapping[str, TensorDigest]: ...


class Journal:
    """The weight files of a folder that is being made; opening it clears what does not stand."""

    def __init__(self, building: Path) -> None:
        """Read the journal, hash the files it names, and remove every other leftover."""
        self._path = building / _JOURNAL
        self.reused = tuple(_standing(building, self._path))
        self.shards = self.reused
        self._known = {shard.file.path for shard in self.reused}
        for path in building.iterdir():
            if path.name in self._known or is_note(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self._rewrite()

    @property
    def bytes(self) -> int:
        """What the files that stand take on disk."""
        return sum(shard.file.size for shard in self.reused)

    def add(self, writer: Written, tally: Tally) -> None:
        """Note the shards that the writer finished since the last call."""
        for shard in writer.shards:
            entry = writer.finished.get(shard.file)
            if entry is None or entry.path in self._known:
                continue
            names = [tensor.name for tensor in shard.tensors]
            digests = {name: writer.digests[name] for name in names}
            line = FinishedShard(entry, digests, tally.json(names))
            self._known.add(entry.path)
            self._append(line)

    def _rewrite(self) -> None:
        self._path.unlink(missing_ok=True)
        for shard in self.reused:
            self._append(shard)

    def _append(self, shard: FinishedShard) -> None:
        with self._path.open("ab") as out:
            out.write(json.dumps(shard.json()).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())


def _standing(building: Path, journal: Path) -> list[FinishedShard]:
    if not journal.is_file():
        return []
    found = [_parsed(line, journal) for line in journal.read_bytes().split(b"\n")]
    return [shard for shard in found if shard is not None and _stands(building, shard.file)]


def _parsed(line: bytes, journal: Path) -> FinishedShard | None:
    try:  # the last line may be torn
        value = parse_json(line, name=str(journal))
        return FinishedShard(
            FileEntry(str(value["path"]), int(value["size"]), str(value["sha256"])),
            {
                str(name): TensorDigest(
                    str(digest["dtype"]), tuple(map(int, digest["shape"])), str(digest["sha256"])
                )
                for name, digest in value["tensors"]
            },
            {
                str(kind): {str(name): int(count) for name, count in counts.items()}
                for kind, counts in value["tally"].items()
            },
        )
    except (StoreError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _stands(building: Path, entry: FileEntry) -> bool:
    path = inside(building, entry.path)
    return (
        path.is_file() and path.stat().st_size == entry.size and sha256_file(path) == entry.sha256
    )

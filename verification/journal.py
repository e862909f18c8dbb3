"""What a comparison has done so far, on disk: a killed run goes on, candidates share a reference.

`FOLDER/<stage>-<digest of what it depends on>/<batch>.npz`: one file per batch, written whole or
not at all. A file that cannot be read counts as not there and is made again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.canonical import canonical_digest
from model_store.files import write_bytes

_META = "meta.json"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished piece: facts as JSON, numbers as arrays."""

    facts: Any
    arrays: Arrays


class Stage:
    """The finished pieces of one stage; `key` is everything that its results depend on."""

    def __init__(self, folder: Path, name: str, key: Mapping[str, Any]) -> None:
        self.digest = canonical_digest(dict(key))
        self._folder = folder / f"{name}-{self.digest[:16]}"

    def read(self, piece: str) -> Entry | None:
        """What was written for a piece; None when it has to be made."""
        try:
            # numpy leaves a file open that it cannot read
            with (
                self._path(piece).open("rb") as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                arrays = {name: stored[name] for name in stored.files if name != _META}
                facts = json.loads(stored[_META].tobytes().decode("utf-8", "surrogatepass"))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return Entry(facts, arrays)

    def has(self, piece: str) -> bool:
        return self.read(piece) is not None

    def write(self, piece: str, facts: Any, arrays: Arrays) -> None:
        """Keep a finished piece."""
        text = json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass")
        out = io.BytesIO()
        every: dict[str, Any] = {_META: np.frombuffer(text, dtype=np.uint8), **arrays}
        np.savez(out, **every)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._path(piece), out.getvalue())

    def _path(self, piece: str) -> Path:
        return self._folder / f"{piece}.npz"

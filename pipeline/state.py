"""What a finished step left behind, so that the next run does not do it twice.

`<work>/.ferry/<step>.json` holds the digest of everything the step read (its key) and of what it
left. A step is skipped when both still agree with the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.canonical import canonical_digest, canonical_json, parse_json
from model_store.errors import NotASnapshotError, StoreError
from model_store.files import sha256_file, write_bytes
from model_store.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest, scan
from pipeline.steps import Leaves, Reads

REPORT_FILES = ("parity.json", "summary.md", "report.html")
CARD_FILES = ("README.md", "configuration.json", "LICENSE", "NOTICE")


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished step: its key, the result's path and JSON, and the digest of what it left."""

    key: str
    path: str
    left: str
    result: Mapping[str, Any]


def _file(work: Path, step: str) -> Path:
    return work / ".ferry" / f"{step}.json"


def load(work: Path, step: str) -> Finished | None:
    """Read what is remembered of a step; None when nothing, or nothing readable, is."""
    try:
        value = parse_json(_file(work, step).read_bytes(), name=step)
        return Finished(value["key"], value["path"], value["left"], value["result"])
    except (FileNotFoundError, StoreError, KeyError, TypeError):
        return None


def save(work: Path, step: str, finished: Finished) -> None:
    """Remember a finished step, atomically."""
    value = {
        "key": finished.key,
        "path": finished.path,
        "left": finished.left,
        "result": dict(finished.result),
    }
    write_bytes(_file(work, step), canonical_json(value))


def forget(work: Path, step: str) -> None:
    """Drop what is remembered, before the step runs: a killed step must not look finished."""
    _file(work, step).unlink(missing_ok=True)


def is_input(path: Path) -> bool:
    """Whether a path that stands in a step's options is one to digest: a file or a snapshot."""
    try:
        return path.is_file() or (path / MANIFEST_NAME).is_file()
    except OSError:
        return False  # some text that no path can be


def input_digest(path: Path, reads: Reads) -> str:
    """Digest of what a step reads of an earlier result: a snapshot, a plain folder or a file."""
    if path.is_file():
        return sha256_file(path)
    if not (path / MANIFEST_NAME).is_file():
        return canonical_digest([entry.json() for entry in scan(path)])
    manifest = read_manifest(path)
    if reads == "content":
        return manifest.content_digest
    kept = [e for e in manifest.files if reads == "files" or _is_read_by_a_card(manifest, e)]
    lineage = [step.json() for step in manifest.lineage]
    return canonical_digest([[entry.json() for entry in kept], lineage])


def _is_read_by_a_card(manifest: Manifest, entry: FileEntry) -> bool:
    return entry in manifest.content or entry.path.startswith("records/")


def left_digest(result: Mapping[str, Any], leaves: Leaves) -> str | None:
    """Digest of what a step left; None when it is not there or was damaged.

    A snapshot's weights are checked by size here, not hashed: `ferry verify` does that. Commits
    lie on a hub: the runner asks it.

    Args:
        result: the step's JSON result.
        leaves: what its kind leaves.
    """
    path = Path(str(result["path"]))
    try:
        if leaves == "snapshot":
            return _snapshot_digest(path)
        if leaves == "card":
            return canonical_digest([sha256_file(path / name) for name in CARD_FILES])
        if leaves == "record":
            report = Path(str(result["report"]))
            pages = [sha256_file(report / name) for name in REPORT_FILES]
            return canonical_digest([sha256_file(Path(str(result["record"]))), *pages])
        if leaves == "folder":
            return canonical_digest([e.json() for e in scan(path)]) if path.exists() else None
    except (FileNotFoundError, NotADirectoryError, NotASnapshotError):
        return None
    return ""


def _snapshot_digest(path: Path) -> str | None:
    manifest = read_manifest(path)
    for entry in manifest.content:
        file = path / entry.path
        if not file.is_file() or file.stat().st_size != entry.size:
            return None
    return manifest.content_digest

"""CHANGES.md, and the legal files that travel with weights, whoever rewrites them.

Licences such as Qwen-VL's ask that changed files carry a prominent notice of the change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from model_store.manifest import Manifest, Step
from model_store.paths import inside

CHANGES = "CHANGES.md"
_LEGAL = ("LICENSE", "LICENCE", "NOTICE")
_LARGEST = 1_000_000  # bytes; whatever is larger is no list of notices


def is_legal(path: str) -> bool:
    """Whether a file is a licence or notice at a snapshot's top, such as LICENSE or NOTICE.txt."""
    name = PurePosixPath(path)
    return (
        len(name.parts) == 1
        and name.suffix.lower() in ("", ".txt", ".md")
        and name.stem.upper().split("-")[0].split("_")[0] in _LEGAL
    )


def changes_text(folder: Path, parent: Manifest, step: Step, notes: Sequence[str]) -> bytes:
    """Render CHANGES.md: the notices of the steps before, and this step's.

    Args:
        folder: the parent snapshot.
        parent: its manifest.
        step: what was done to it.
        notes: what changed, a sentence each.
    """
    before = b"# Notices of change\n"
    entry = parent.entry(CHANGES)
    if entry is not None and entry.size <= _LARGEST:
        before = inside(folder, CHANGES).read_bytes().rstrip() + b"\n"
    source = parent.source
    named = f" ({source.hub}:{source.repo_id} at {source.commit})" if source else ""
    lines = [
        "",
        f"## {step.step}",
        "",
        f"Made by {step.tool} from content sha256 `{step.parent}`{named}.",
        "",
        *[f"- {note}" for note in notes],
        "",
    ]
    return before + "\n".join(lines).encode("utf-8")

"""Make a snapshot folder beside its place, and give it its name when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import NotASnapshotError, TargetExistsError
from model_store.files import exclusive, write_text
from model_store.folder_swap import put_in_place, rescue
from model_store.manifest import MANIFEST_NAME, Manifest, Step, read_manifest

_KEY = "resume-key.partial"
_NOTES = frozenset({_KEY, "journal.partial"})


def finished_result(target: Path, step: Step) -> Manifest | None:
    """Return the manifest of `target` when it is already the result of exactly this step."""
    try:
        manifest = read_manifest(target)
    except NotASnapshotError:
        return None
    return manifest if manifest.lineage and manifest.lineage[-1].json() == step.json() else None


@contextmanager
def new_snapshot(
    target: Path, *, replace: bool = False, resume_key: str | None = None
) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well.

    The block writes its files and, last, the manifest. A block that raises, or a process that is
    killed, leaves no `target`; the leftover is cleared by the next try, or handed to it.

    Args:
        target: the snapshot's place; its parents are made.
        replace: allow an older snapshot of ours at `target` to be replaced.
        resume_key: names the work; what a killed or interrupted run of the same key left is then
            yielded as it is, and the block decides what of it still stands. Its notes (`is_note`)
            do not become part of the snapshot.

    Raises:
        TargetExistsError: `target` exists and is not ours, or is ours and `replace` is False.
        BusyError: another process is making the same snapshot.
    """
    check_target(target, replace=replace)
    target = target.resolve()  # a link to a folder means the folder: its disk is where bytes go
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with exclusive(lock, wait=False, what=str(target)):
        rescue(target)
        check_target(target, replace=replace)
        keep = False
        try:
            _prepare(building, resume_key)
            yield building
            read_manifest(building)  # a block that forgot its manifest is our bug: fail before use
            if resume_key is not None:
                for note in (path for path in building.iterdir() if is_note(path.name)):
                    note.unlink()
            put_in_place(building, target)
        except KeyboardInterrupt:
            keep = resume_key is not None
            raise
        finally:
            if not keep:
                shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)


def is_note(name: str) -> bool:
    """Whether a file of a folder that is being made is a note for the next try."""
    return name in _NOTES


def is_resumable(target: Path, key: str) -> bool:
    """Whether a killed run of the work that `key` names left something to go on from."""
    target = target.resolve()
    return _key_of(target.with_name(f".{target.name}.partial")) == key


def _prepare(building: Path, key: str | None) -> None:
    if key is not None and _key_of(building) == key:
        return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    if key is not None:
        write_text(building / _KEY, key)


def _key_of(building: Path) -> str | None:
    try:
        return (building / _KEY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def check_target(target: Path, *, replace: bool) -> None:
    """Refuse a place that is taken.

    Raises:
        TargetExistsError: see `new_snapshot`.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise TargetExistsError(
            f"{target} exists and is not a snapshot of ours", hint="Choose another target."
        )
    if not replace:
        raise TargetExistsError(f"{target} already holds a snapshot")

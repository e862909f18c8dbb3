"""Make a snapshot folder beside its place, and give it its name when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import NotASnapshotError, TargetExistsError
from model_store.files import exclusive
from model_store.manifest import MANIFEST_NAME, Manifest, Step, read_manifest


def finished_result(target: Path, step: Step) -> Manifest | None:
    """Return the manifest of `target` when it is already the result of exactly this step."""
    try:
        manifest = read_manifest(target)
    except NotASnapshotError:
        return None
    return manifest if manifest.lineage and manifest.lineage[-1].json() == step.json() else None


@contextmanager
def new_snapshot(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well.

    The block writes its files and, last, the manifest. A block that raises, or a process that is
    killed, leaves no `target`; the leftover is cleared by the next try.

    Args:
        target: the snapshot's place; its parents are made.
        replace: allow an older snapshot of ours at `target` to be replaced.

    Raises:
        TargetExistsError: `target` exists and is not ours, or is ours and `replace` is False.
        BusyError: another process is making the same snapshot.
    """
    target = target.absolute()
    check_target(target, replace=replace)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with exclusive(lock, wait=False, what=str(target)):
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            yield building
            read_manifest(building)  # a block that forgot its manifest is our bug: fail before use
            _swap(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)


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


def _swap(building: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    building.rename(target)
    shutil.rmtree(old, ignore_errors=True)

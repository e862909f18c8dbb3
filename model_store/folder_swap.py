"""Put a finished folder in the place of an older one, so that a kill loses neither."""

from __future__ import annotations

import shutil
from pathlib import Path


def put_in_place(building: Path, target: Path) -> None:
    """Give `building` the name `target`; call it under the lock that `rescue` was called under.

    An older `target` is set aside for the moment between two renames, and `rescue` of the next
    run brings it back when this one is killed right there.
    """
    old = _aside(target)
    _remove(old)
    if target.exists():
        target.rename(old)
    building.rename(target)
    _remove(old)


def rescue(target: Path) -> None:
    """Bring back what a killed `put_in_place` had set aside; does nothing in any other case."""
    old = _aside(target)
    if old.is_dir() and not old.is_symlink() and not target.exists() and not target.is_symlink():
        old.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _remove(old: Path) -> None:
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)

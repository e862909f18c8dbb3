"""Whether a disk has room for what a step will write, asked before the first byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from conversion.errors import DiskSpaceError


def free_bytes(place: Path) -> int:
    """Free bytes of the disk that holds `place`, or will: the nearest parent that exists counts."""
    folder = place.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(place: Path, needed: int) -> None:
    """Refuse work that the disk of `place` cannot hold.

    Raises:
        DiskSpaceError: naming what is needed and what is free.
    """
    free = free_bytes(place)
    if needed > free:
        raise DiskSpaceError(place, needed, free)

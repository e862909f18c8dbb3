"""Whether the disk can take what is to be fetched, and what to say when it cannot."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

from hub_tools.errors import DiskSpaceError, TransferError
from hub_tools.partial_file import bytes_on_disk
from hub_tools.sources import Wanted
from model_store.progress import human_bytes

_SPARE = 64 << 20  # bytes of disk left free


def check_disk_space(wanted: Sequence[Wanted]) -> None:
    """Refuse to begin what cannot end.

    Raises:
        DiskSpaceError: the disk has less room than the files need.
    """
    if not wanted:
        return
    needed = sum(max(0, item.file.size - bytes_on_disk(item.place)) for item in wanted)
    folder = wanted[0].place.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE > free:
        raise DiskSpaceError(
            f"{human_bytes(needed)} are to be fetched to {folder}, which has {human_bytes(free)}"
        )


def disk_error(error: OSError, place: Path) -> TransferError:
    """The error for a place that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(f"the disk of {place.parent} is full")
    return TransferError(
        f"cannot write {place}: {error.strerror or error}", hint="Check the folder's permissions."
    )

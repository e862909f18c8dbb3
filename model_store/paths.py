"""Which relative paths may come from outside: portable ones that stay inside their folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from model_store.errors import UnsafePathError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DRIVE = re.compile(r"^[A-Za-z]:")
# CON, NUL and friends open devices on Windows, whatever their ending
_DEVICE = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


def check_relative_path(path: str) -> str:
    """Return `path` when it is a safe POSIX path relative to a folder.

    Raises:
        UnsafePathError: it is empty, absolute, climbs out, or names what some system cannot hold.
    """
    if not path:
        raise UnsafePathError(path, "it is empty")
    if "\\" in path or path.startswith("/") or _DRIVE.match(path):
        raise UnsafePathError(path, "it is absolute or not POSIX")
    if _CONTROL.search(path):
        raise UnsafePathError(path, "it has a control character")
    if _SURROGATE.search(path):
        # JSON can say half a surrogate pair, and no file system can hold one
        raise UnsafePathError(path, "it is not Unicode")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise UnsafePathError(path, f"it has the part {part!r}")
        if part.endswith((".", " ")):
            raise UnsafePathError(path, "a part ends in a dot or space")
        if _DEVICE.match(part):
            raise UnsafePathError(path, f"{part!r} is a device on Windows")
        if len(part.encode("utf-8")) > 255:
            raise UnsafePathError(path, "a part is longer than 255 bytes")
    return path


def check_paths(paths: Iterable[str]) -> list[str]:
    """Check a whole listing: each path, no two equal when case is ignored, no file as a folder.

    Raises:
        UnsafePathError: naming the first path that clashes.
    """
    checked = [check_relative_path(path) for path in paths]
    seen: dict[str, str] = {}
    for path in checked:
        folded = path.casefold()
        if folded == path:
            folded = path  # most are, and a listing may be long
        if folded in seen:
            raise UnsafePathError(path, f"it clashes with {seen[folded]!r} where case is ignored")
        seen[folded] = path
    folders: set[str] = set()  # that are known to be no files
    for folded, path in seen.items():
        parent = folded.rpartition("/")[0]
        while parent and parent not in folders:
            if parent in seen:
                raise UnsafePathError(path, f"{seen[parent]!r} is a file")
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    return checked


def inside(folder: Path, relative: str) -> Path:
    """Join a checked path to `folder`; no folder on the way may be a symbolic link.

    Raises:
        UnsafePathError: unsafe text, or a link planted inside the folder.
    """
    target = folder / check_relative_path(relative)
    for parent in target.relative_to(folder).parents:
        if parent != Path() and (folder / parent).is_symlink():
            raise UnsafePathError(relative, f"{parent.as_posix()!r} is a symbolic link")
    return target

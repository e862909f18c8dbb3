"""Atomic files and folders: written beside their place, renamed when complete."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_store.errors import BusyError

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the sha256 (lowercase hex) of a file's bytes."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a `.partial` file that takes the name `path` when the block ends well.

    A block that raises leaves the old file, if any, untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as out:
        out.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically, with LF line ends on every system."""
    write_bytes(path, text.encode("utf-8"))


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source`'s bytes a second name, or copy them where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy bytes and nothing else; the copy is writable by its owner."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, replacing(target) as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)


@contextmanager
def exclusive(lock: Path, *, wait: bool = True, what: str = "this") -> Iterator[None]:
    """Hold an advisory lock file; the system drops it when the process dies, however it dies.

    Raises:
        BusyError: another process holds it and `wait` is False.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise BusyError(f"another process is working on {what}") from error
            if _is_still(lock, handle):
                yield
                return


def _is_still(lock: Path, handle: BinaryIO) -> bool:
    # a holder may remove its lock file while we wait for it; the lock that counts is then another
    try:
        return os.path.samestat(lock.stat(), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False

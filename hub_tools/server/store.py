"""The blobs of the local hub: each file once, under its sha256, checked while it comes in."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from model_store.errors import StoreError
from model_store.files import copy_file

_CHUNK = 1 << 20
# what people edit in place (a card, a config) is copied; weights get a second name instead of a
# second copy
_LINK_FROM = 1 << 20


class BlobMismatchError(StoreError):
    """Bytes that came in are not the announced ones; nothing of them is kept."""


@dataclass(frozen=True, slots=True)
class Digests:
    """What one pass over a file tells."""

    size: int
    sha256: str
    git_oid: str


def hash_file(path: Path) -> Digests:
    """Hash a file once for both hubs.

    Raises:
        StoreError: it changed meanwhile.
    """
    with path.open("rb") as source:
        before = os.fstat(source.fileno())
        sha256 = hashlib.sha256()
        git = hashlib.sha1(b"blob %d\0" % before.st_size, usedforsecurity=False)
        while chunk := source.read(_CHUNK):
            sha256.update(chunk)
            git.update(chunk)
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise StoreError(f"{path} changed while it was read", hint="Start again when it is still.")
    return Digests(before.st_size, sha256.hexdigest(), git.hexdigest())


class BlobStore:
    """Files under `root/blobs/sha256/ab/…`, each with the name of its bytes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def clear_incoming(self) -> None:
        """Drop what a killed process left half received."""
        shutil.rmtree(self._incoming, ignore_errors=True)

    def path(self, sha256: str) -> Path:
        return self._root / "blobs" / "sha256" / sha256[:2] / sha256

    def has(self, sha256: str, size: int) -> bool:
        try:
            return self.path(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def open(self, sha256: str, size: int) -> BinaryIO:
        """Open a blob for reading.

        Raises:
            StoreError: it is missing, or somebody changed a file that it shares bytes with.
        """
        try:
            blob = self.path(sha256).open("rb")
        except FileNotFoundError as error:
            raise StoreError(f"blob {sha256[:12]}… is gone from the store") from error
        if os.fstat(blob.fileno()).st_size != size:
            blob.close()
            raise StoreError(f"blob {sha256[:12]}… was changed behind the store's back")
        return blob

    def adopt(self, source: Path, digests: Digests) -> None:
        """Take a hashed file in: a large one as a second name, a small one as a copy."""
        target = self.path(digests.sha256)
        if self.has(digests.sha256, digests.size):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if digests.size >= _LINK_FROM:
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without hard links
                copy_file(source, target)
        else:
            copy_file(source, target)

    def forget_if_same_file(self, sha256: str, path: Path) -> None:
        """Drop a blob that is a second name of `path`, whose bytes have changed since."""
        blob = self.path(sha256)
        if blob.exists() and path.exists() and blob.samefile(path):
            blob.unlink()

    def receive(self, chunks: Iterable[bytes], *, size: int, sha256: str) -> None:
        """Store bytes that come from outside, once they are the announced ones.

        Raises:
            BlobMismatchError: another size or another hash.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        partial = self._incoming / f"{secrets.token_hex(8)}.partial"
        try:
            received, actual = self._write(partial, chunks, limit=size)
            if received != size or actual != sha256:
                raise BlobMismatchError(
                    f"received {received} bytes with sha256 {actual}, announced were {size} bytes "
                    f"with sha256 {sha256}"
                )
            target = self.path(sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def add(self, data: bytes) -> Digests:
        """Store a small file that came inside a request."""
        sha256 = hashlib.sha256(data).hexdigest()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if not self.has(sha256, len(data)):
            self.receive([data], size=len(data), sha256=sha256)
        return Digests(len(data), sha256, git)

    @staticmethod
    def _write(path: Path, chunks: Iterable[bytes], *, limit: int) -> tuple[int, str]:
        digest, received = hashlib.sha256(), 0
        with path.open("wb") as out:
            for chunk in chunks:
                received += len(chunk)
                if received > limit:
                    raise BlobMismatchError(f"more than the announced {limit} bytes came")
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        return received, digest.hexdigest()

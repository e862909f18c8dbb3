"""Compare a source's weight files with its manifest, ahead of the one who reads their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from conversion.opened import OpenedSnapshot
from model_store.errors import DigestMismatchError

_CHUNK = 1 << 20


class SourceCheck:
    """Hashes files in a thread of its own; who needs a file waits for it. A context manager."""

    def __init__(self, opened: OpenedSnapshot, files: Iterable[Path]) -> None:
        """Begin with the first of `files`; they are taken in this order."""
        self._opened, self._stop = opened, Event()
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="source-sha256")
        self._checks: dict[Path, Future[None]] = {
            file: self._lane.submit(self._check, file) for file in dict.fromkeys(files)
        }

    def wait(self, file: Path) -> None:
        """Return when a file is what the manifest says, or is not among those to check.

        Raises:
            DigestMismatchError: it is not.
        """
        if file in self._checks:
            self._checks[file].result()

    def finish(self) -> None:
        """Wait for every file."""
        for file in self._checks:
            self.wait(file)

    def _check(self, file: Path) -> None:
        path = file.relative_to(self._opened.folder).as_posix()
        entry = self._opened.manifest.entry(path)
        assert entry is not None  # noqa: S101  open_snapshot looked
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        with file.open("rb", buffering=0) as source:
            while not self._stop.is_set() and (size := source.readinto(buffer)):
                digest.update(buffer[:size])
        if not self._stop.is_set() and digest.hexdigest() != entry.sha256:
            raise DigestMismatchError(path, expected=entry.sha256, actual=digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._lane.shutdown(cancel_futures=True)

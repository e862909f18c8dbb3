"""Fetch files with one queue of byte ranges over all of them, verifying every byte.

Whatever breaks keeps the bytes that came: a part goes on with a Range request, and every try asks
the hub anew, so a signed storage URL that expired is simply signed again. A file whose digest is
wrong is fetched once more from zero, then refused; nothing wrong ever has the final name.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hub_tools.errors import (
    DiskSpaceError,
    GitDigestMismatchError,
    HubError,
    HubProtocolError,
    HubUnreachableError,
    SizeMismatchError,
    TransferError,
)
from hub_tools.http import Http, Stream, retry_after, shown_url
from hub_tools.partial_file import (
    Digests,
    PartialFile,
    SupersededError,
    bytes_on_disk,
)
from hub_tools.protocol import RemoteFile
from hub_tools.replies import refusal
from model_store.errors import DigestMismatchError
from model_store.files import sha256_file, write_bytes
from model_store.progress import Progress, Task, human_bytes

log = logging.getLogger(__name__)

_READ = 1 << 18
_REPORT = 1 << 20
_TRIED_AGAIN = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_EXPIRED = frozenset({400, 401, 403, 404, 410})  # a signed URL that the hub redirected to
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_SPARE = 64 << 20  # bytes of disk left free


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How files are fetched; nothing here changes what arrives."""

    connections: int = 8
    part_size: int = 64 << 20  # larger files come in several ranges at once
    attempts: int = 6  # tries of a part in a row that bring next to nothing
    lowest_rate: float = 1024.0  # bytes per second …
    rate_window: float = 30.0  # … over this many seconds, or the connection is given up


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to fetch."""

    file: RemoteFile
    url: str  # at the hub
    place: Path  # where the verified bytes go


class _TryAgainError(Exception):
    """This try failed, and the next may not."""

    def __init__(self, error: HubError, *, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


class _StoppedError(Exception):
    """The transfer ends; what came is kept."""


class _Job:
    """One wanted file while it is worked on."""

    def __init__(self, wanted: Wanted, options: TransferOptions) -> None:
        file = wanted.file
        self.wanted = wanted
        self.promised = file.sha256
        self.corrupted = False  # it was fetched from zero a second time
        self.partial = PartialFile(
            wanted.place,
            file.size,
            identity=identity(file, wanted.url),
            part_size=options.part_size,
            git_id=file.sha256 is None and file.git_sha1 is not None,
        )


@dataclass(slots=True)
class _Work:
    """A file to open (no index), or one part of an open file; belongs to one worker at a time."""

    job: _Job
    index: int = -1
    generation: int = 0

    @property
    def opens(self) -> bool:
        return self.index < 0

    def position(self) -> int:
        return self.job.partial.position(self.index, self.generation)


def identity(file: RemoteFile, url: str) -> str:
    """What a leftover's bytes are: by digest, so that they serve any hub and revision."""
    if file.sha256:
        return f"sha256:{file.sha256}"
    return f"git:{file.git_sha1}" if file.git_sha1 else f"url:{shown_url(url)}#{file.path}"


def fetch(
    hub: str,
    http: Http,
    wanted: Sequence[Wanted],
    *,
    options: TransferOptions,
    progress: Progress,
    label: str = "download",
) -> dict[Path, str]:
    """Fetch every wanted file to its place; returns the sha256 of each place.

    Args:
        hub: its name, for messages.
        http: how it is reached.
        wanted: files with places of their own; a place that exists is overwritten.
        options: connections, sizes, patience.
        progress: told about bytes as they arrive.
        label: what the progress is called.

    Raises:
        DigestMismatchError: a file was wrong twice.
        TransferError: bytes did not arrive; those that did are kept.
        HubError: the hub refused a file.
    """
    check_disk_space(wanted)
    total = sum(item.file.size for item in wanted)
    with progress.task(label, total, unit="B") as task:
        return _Transfer(hub, http, options, task).run(wanted)


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


class _Transfer:
    def __init__(self, hub: str, http: Http, options: TransferOptions, task: Task) -> None:
        self._hub, self._http, self._options, self._task = hub, http, options, task
        self._changed = threading.Condition()
        self._queue: deque[_Work] = deque()
        self._unfinished = 0
        self._stopping = threading.Event()
        self._streams: set[Stream] = set()
        self._jobs: list[_Job] = []
        self._digests: dict[Path, str] = {}

    def run(self, wanted: Sequence[Wanted]) -> dict[Path, str]:
        # the largest first: a shard that starts last would end alone
        for item in sorted(wanted, key=lambda item: -item.file.size):
            if item.file.size == 0:
                self._empty(item)
                continue
            self._jobs.append(_Job(item, self._options))
        self._queue.extend(_Work(job) for job in self._jobs)
        self._unfinished = len(self._jobs)
        if self._jobs:
            self._work_all()
        return self._digests

    def _empty(self, item: Wanted) -> None:
        empty = Digests(
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
        )
        mismatch = _mismatch(item.file, item.file.sha256, empty)
        if mismatch:
            raise mismatch
        write_bytes(item.place, b"")
        self._digests[item.place] = empty.sha256

    def _work_all(self) -> None:
        count = max(1, self._options.connections)
        pool = ThreadPoolExecutor(count, thread_name_prefix="ferry-transfer")
        try:
            workers: list[Future[None]] = [pool.submit(self._work) for _ in range(count)]
            wait(workers, return_when=FIRST_EXCEPTION)
            self._stop()
            for worker in workers:
                worker.result()
        finally:
            self._stop()
            pool.shutdown(wait=True)
            for job in self._jobs:
                job.partial.close()

    def _stop(self) -> None:
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
            # a worker may wait half a minute for bytes that are no longer wanted
            streams = list(self._streams)
        for stream in streams:
            stream.abort()

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                if work.opens:
                    self._open(work.job)
                else:
                    self._fetch_part(work)
            except SupersededError:
                continue
            except _StoppedError:
                return
            except OSError as error:
                raise _disk_error(error, work.job.wanted.place) from error

    def _next(self) -> _Work | None:
        with self._changed:
            while not self._stopping.is_set() and self._unfinished:
                if self._queue:
                    return self._queue.popleft()
                self._changed.wait()
        return None

    def _open(self, job: _Job) -> None:
        partial = job.partial
        waited = False
        while not partial.try_open():
            waited = True
            if self._stopping.wait(0.2):
                raise _StoppedError
        place, size = job.wanted.place, job.wanted.file.size
        if waited and place.exists() and place.stat().st_size == size:
            # another process finished it while this one waited
            partial.discard()
            self._finished(job, sha256_file(place))
            self._task.advance(size)
            return
        self._advance(partial.received)
        self._enqueue_parts(job, partial.missing())
        if partial.claim_finish(partial.generation):
            self._finish(job)

    def _enqueue_parts(self, job: _Job, indices: Sequence[int]) -> None:
        generation = job.partial.generation
        with self._changed:
            # before the files that wait: few files open at once, and their hashing keeps up
            self._queue.extendleft(_Work(job, i, generation) for i in reversed(indices))
            self._changed.notify_all()

    def _fetch_part(self, work: _Work) -> None:
        failures = 0
        while True:
            before = work.position()
            try:
                self._attempt(work)
                break
            except _TryAgainError as failure:
                self._check_stopping()
                if work.position() - before >= _REPORT:
                    failures = 0
                failures += 1
                if failures >= self._options.attempts:
                    raise failure.error from failure
                delay = self._http.retry.delay(failures - 1, failure.after)
                log.info("%s: %s; again in %.1f s", work.job.wanted.file.path, failure, delay)
                if self._stopping.wait(delay):
                    raise _StoppedError from failure
        if work.job.partial.claim_finish(work.generation):
            self._finish(work.job)

    def _attempt(self, work: _Work) -> None:
        """Ask for the rest of a part once, and write what comes."""
        job = work.job
        size = job.wanted.file.size
        start, end = work.position(), job.partial.part(work.index).end
        if start == end:
            return
        whole = start == 0 and end == size
        headers = {} if whole else {"Range": f"bytes={start}-{end - 1}"}
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(self._http.stream(job.wanted.url, headers=headers))
            except HubUnreachableError as error:
                raise _TryAgainError(error) from error
            self._check_answer(job, stream, start, end)
            if stream.status == 200 and not whole:
                # the Range was ignored: this stream becomes the file's only part
                work.generation, lost = job.partial.restart(work.generation, whole=True)
                self._advance(-lost)
                work.index, start, end = 0, 0, size
            stack.enter_context(self._abortable(stream))
            self._receive(work, stream, end - start)

    def _receive(self, work: _Work, stream: Stream, count: int) -> None:
        opened, arrived, unreported = time.monotonic(), 0, 0
        try:
            while count:
                data = stream.read(min(_READ, count))
                self._check_stopping()
                if not data:
                    raise _TryAgainError(self._lost(work.job, f"{count} bytes are missing"))
                work.job.partial.write(work.index, work.generation, data)
                count -= len(data)
                arrived += len(data)
                unreported += len(data)
                if unreported >= _REPORT:
                    self._advance(unreported)
                    unreported = 0
                seconds = time.monotonic() - opened
                if seconds >= self._options.rate_window:
                    if arrived < self._options.lowest_rate * seconds:
                        raise _TryAgainError(self._lost(work.job, "the bytes only trickle"))
                    opened, arrived = time.monotonic(), 0
        except HubUnreachableError as error:
            raise _TryAgainError(self._lost(work.job, str(error))) from error
        finally:
            self._advance(unreported)

    def _check_answer(self, job: _Job, stream: Stream, start: int, end: int) -> None:
        file = job.wanted.file
        if stream.status not in (200, 206):
            raise self._refused(job, stream)
        if stream.headers.get("Content-Encoding", "identity") != "identity":
            raise _TryAgainError(HubProtocolError(f"{file.path} comes compressed"))
        if stream.status == 206:
            _check_range(file, stream.headers.get("Content-Range", ""), start, end)
        else:
            length = stream.headers.get("Content-Length")
            if length is not None and length != str(file.size):
                raise _TryAgainError(_wrong_size(file, length))
        linked = stream.headers.get("X-Linked-ETag", "").strip('"')
        if job.promised is None and re.fullmatch(r"[0-9a-f]{64}", linked):
            job.promised = linked

    def _refused(self, job: _Job, stream: Stream) -> Exception:
        path = job.wanted.file.path
        redirected = stream.url != self._http.absolute(job.wanted.url)
        error = refusal(self._hub, self._http, stream.status, path)
        if redirected:
            error = HubUnreachableError(
                f"the storage of {self._hub} answers {stream.status} for {path}"
            )
        again = stream.status in _TRIED_AGAIN or (redirected and stream.status in _EXPIRED)
        asked = retry_after(stream.headers)
        if not again or (asked or 0) > self._http.retry.longest_retry_after:
            return error
        return _TryAgainError(error, after=asked)

    def _finish(self, job: _Job) -> None:
        found = job.partial.digests()
        mismatch = _mismatch(job.wanted.file, job.promised, found)
        if mismatch is None:
            job.partial.commit()
            self._finished(job, found.sha256)
        elif job.corrupted:
            job.partial.discard()
            raise mismatch
        else:
            log.warning("%s; fetching it once more", mismatch)
            job.corrupted = True
            _, lost = job.partial.restart(job.partial.generation)
            self._advance(-lost)
            self._enqueue_parts(job, job.partial.missing())

    def _finished(self, job: _Job, sha256: str) -> None:
        with self._changed:
            self._digests[job.wanted.place] = sha256
            self._unfinished -= 1
            self._changed.notify_all()

    @contextmanager
    def _abortable(self, stream: Stream) -> Iterator[None]:
        with self._changed:
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._changed:
                self._streams.discard(stream)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise _StoppedError

    def _advance(self, amount: int) -> None:
        with self._changed:
            self._task.advance(amount)

    @staticmethod
    def _lost(job: _Job, why: str) -> TransferError:
        return TransferError(f"{job.wanted.file.path} did not arrive: {why}")


def _check_range(file: RemoteFile, text: str, start: int, end: int) -> None:
    match = _RANGE.match(text)
    if match is None or (int(match[1]), int(match[2]) + 1) != (start, end):
        raise _TryAgainError(
            HubProtocolError(f"{file.path}: bytes {start}-{end - 1} were asked for, got {text!r}")
        )
    if match[3] not in ("*", str(file.size)):
        raise _TryAgainError(_wrong_size(file, match[3]))


def _wrong_size(file: RemoteFile, actual: str) -> SizeMismatchError:
    return SizeMismatchError(
        f"{file.path} is listed with {file.size} bytes and comes with {actual}"
    )


def _mismatch(file: RemoteFile, promised: str | None, found: Digests) -> DigestMismatchError | None:
    if promised is not None and found.sha256 != promised:
        return DigestMismatchError(file.path, expected=promised, actual=found.sha256)
    if promised is None and file.git_sha1 and found.git_sha1 and found.git_sha1 != file.git_sha1:
        return GitDigestMismatchError(file.path, expected=file.git_sha1, actual=found.git_sha1)
    return None


def _disk_error(error: OSError, place: Path) -> TransferError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(f"the disk of {place.parent} is full")
    return TransferError(
        f"cannot write {place}: {error.strerror or error}", hint="Check the folder's permissions."
    )

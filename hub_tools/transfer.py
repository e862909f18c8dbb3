"""Fetch files in byte ranges over all of them and from all sources, verifying every byte.

Whatever breaks keeps the bytes that came: a range goes on with a new request, and every try asks
the hub anew, so a signed storage URL that expired is simply signed again. Nothing that has not the
promised digest ever has the final name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hub_tools.answers import TryAgainError, find_mismatch
from hub_tools.disk_space import check_disk_space, disk_error
from hub_tools.errors import HubError
from hub_tools.frontier import Digests
from hub_tools.giving_up import Patience
from hub_tools.partial_file import UNKNOWN_SERVER, PartialFile, SupersededError, bytes_kept
from hub_tools.receiving import Receiver, StoppedError
from hub_tools.scheduling import SMALL, Job, Schedule, Work
from hub_tools.source_state import Ledger
from hub_tools.sources import Source, SourceReport, Wanted
from hub_tools.transfer_options import TransferOptions
from hub_tools.transfer_progress import TransferProgress
from hub_tools.trial import Trial, shown_ranges
from model_store.errors import DigestMismatchError
from model_store.files import sha256_file, write_bytes
from model_store.progress import Progress, human_bytes

log = logging.getLogger(__name__)

_TICK = 0.1  # seconds
_FAREWELL = 1.0  # seconds that workers have to notice the end
_EMPTY = Digests(
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a transfer brought."""

    digests: dict[Path, str]  # the sha256 of each place
    sources: tuple[SourceReport, ...]


def fetch(
    wanted: Sequence[Wanted],
    *,
    options: TransferOptions,
    progress: Progress,
    label: str = "download",
) -> Fetched:
    """Fetch every wanted file to its place.

    Args:
        wanted: files with places of their own; a place that exists is overwritten.
        options: connections, sizes, patience.
        progress: told about bytes as they arrive.
        label: what the progress is called.

    Raises:
        DigestMismatchError: a file was wrong from every source.
        TransferError: bytes did not arrive; those that did are kept.
        HubError: every source refused a file.
    """
    check_disk_space(wanted)
    digests = {}
    for item in wanted:
        if item.file.size == 0:
            digests[item.place] = _write_empty(item)
    filled = [item for item in wanted if item.file.size]
    if not filled:
        return Fetched(digests, ())
    total = sum(item.file.size for item in filled)
    kept = sum(_kept(item) for item in filled)
    transfer = _Transfer(filled, options)
    with progress.task(label, total, unit="B", done=kept) as task:
        try:
            digests |= transfer.run(TransferProgress(task, transfer.schedule, kept))
        except KeyboardInterrupt:
            here = human_bytes(transfer.schedule.received)
            progress.log(f"stopped: {here} of {human_bytes(total)} are kept")
            raise
    return Fetched(digests, transfer.report())


def _write_empty(item: Wanted) -> str:
    mismatch = find_mismatch(item.file, item.file.sha256, _EMPTY)
    if mismatch:
        raise mismatch
    write_bytes(item.place, b"")
    return _EMPTY.sha256


def _kept(item: Wanted) -> int:
    if item.file.size < SMALL:
        return 0  # not worth looking
    return bytes_kept(item.place, item.identity, item.file.size)


class _Transfer:
    def __init__(self, wanted: Sequence[Wanted], options: TransferOptions) -> None:
        self._options = options
        sources: dict[Source, None] = {}
        for item in wanted:
            for offer in item.offers:
                sources.setdefault(offer.source)
        self.schedule = Schedule(wanted, list(sources), options)
        self._receiver = Receiver(self.schedule, options)
        self._patience = Patience(self.schedule, options)
        self._digests: dict[Path, str] = {}
        self._waited: set[Path] = set()  # places that another process works on, or did
        self._workers: list[threading.Thread] = []

    def run(self, shown: TransferProgress) -> dict[Path, str]:
        try:
            while True:
                self._hire(self.schedule.adapt())
                if self.schedule.wait(_TICK):
                    break
                shown.show()
        finally:
            self._end()
            shown.show(final=True)
        if self.schedule.error is not None:
            raise self.schedule.error
        return self._digests

    def report(self) -> tuple[SourceReport, ...]:
        return tuple(
            SourceReport(state.source.label, state.bytes, state.failures, tuple(state.banned))
            for state in self.schedule.states
        )

    def _hire(self, count: int) -> None:
        while len(self._workers) < count:
            # a daemon: one that waits for an answer must not keep an interrupted program alive
            name = f"ferry-transfer-{len(self._workers)}"
            worker = threading.Thread(target=self._guarded_work, name=name, daemon=True)
            self._workers.append(worker)
            worker.start()

    def _end(self) -> None:
        self.schedule.stop()
        deadline = time.monotonic() + _FAREWELL
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        for job in self.schedule.jobs():
            job.partial.close()

    def _guarded_work(self) -> None:
        try:
            self._work()
        except StoppedError:
            return
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits for us
            self.schedule.fail(error)

    def _work(self) -> None:
        while (step := self.schedule.next()) is not None:
            place = step.place if isinstance(step, Wanted) else step.job.wanted.place
            try:
                if isinstance(step, Wanted):
                    self._open(step)
                else:
                    self._fetch(step)
            except OSError as error:
                raise disk_error(error, place) from error

    def _open(self, wanted: Wanted) -> None:
        file = wanted.file
        partial = PartialFile(
            wanted.place,
            file.size,
            identity=wanted.identity,
            part_size=self._options.part_size,
            git_id=file.git_sha1 is not None,
        )
        if not partial.try_open():
            self._waited.add(wanted.place)
            self.schedule.defer(wanted, 0.2)
            return
        if wanted.place in self._waited and _is_there(wanted):
            # another process finished it while this one waited
            partial.discard()
            self._digests[wanted.place] = sha256_file(wanted.place)
            self.schedule.finished(None, amount=file.size)
            return
        states = {state.source: state for state in self.schedule.states}
        ledgers = [Ledger(offer, states[offer.source]) for offer in wanted.offers]
        job = Job(wanted, partial, ledgers, promised=file.sha256)
        self.schedule.opened(job)
        if partial.claim_finish(partial.generation):
            self._finish(job)

    def _fetch(self, work: Work) -> None:
        try:
            self._receiver.receive(work)
        except SupersededError:
            self.schedule.dropped(work)
            return
        except (StoppedError, OSError):
            self.schedule.dropped(work)
            raise
        except TryAgainError as failure:
            with self._unless_another_round(work):
                self._patience.failed(work, failure)
        except HubError as error:
            with self._unless_another_round(work):
                self._patience.refused(work, error)
        else:
            self.schedule.ended(work)
        if work.job.partial.claim_finish(work.lease.generation):
            self._finish(work.job)

    def _finish(self, job: Job) -> None:
        found = job.partial.digests()
        if self.schedule.stopping.is_set():
            raise StoppedError
        mismatch = find_mismatch(job.wanted.file, job.promised, found)
        if mismatch is not None:
            self._try_others(job, mismatch)
            return
        if job.trial is not None:
            self._name_culprits(job, job.trial)
        job.partial.commit()
        self._digests[job.wanted.place] = found.sha256
        self.schedule.finished(job)

    def _try_others(self, job: Job, mismatch: DigestMismatchError) -> None:
        """Fetch suspect bytes again; see `trial`.

        Raises:
            DigestMismatchError: every source had its turn.
        """
        job.trial = job.trial or Trial(_candidates(job), mismatch)
        log.warning("%s", mismatch)
        if not self._next_round(job):
            job.partial.discard()
            raise mismatch

    def _next_round(self, job: Job) -> bool:
        following = job.trial.next_round(job.partial) if job.trial is not None else None
        if following is None:
            return False
        job.only, parts = following
        label = self.schedule.states[job.only].source.label
        log.warning("%s: fetching %d parts again, from %s", job.wanted.file.path, len(parts), label)
        self.schedule.reopened(job, job.partial.forget(parts))
        return True

    @contextmanager
    def _unless_another_round(self, work: Work) -> Iterator[None]:
        """A source that fails while it is on trial leaves it to the next one."""
        try:
            yield
        except HubError as error:
            job = work.job
            if job.trial is None or work.lease.generation != job.partial.generation:
                raise
            if not self._next_round(job):
                raise job.trial.mismatch from error

    def _name_culprits(self, job: Job, trial: Trial) -> None:
        path, size = job.wanted.file.path, job.wanted.file.size
        for index, parts in trial.wrong_parts(job.partial).items():
            if index >= len(self.schedule.states):
                log.warning("%s: bytes kept by an earlier run were wrong", path)
                continue
            state = self.schedule.states[index]
            ranges = shown_ranges(parts, job.partial.part_size, size)
            log.warning("%s served wrong bytes of %s: %s", state.source.label, path, ranges)
            with self.schedule.guarded():
                state.banned.append(f"{path}: bytes {ranges}")


def _candidates(job: Job) -> list[int]:
    """The sources to put on trial, the most trusted first."""
    usable = [ledger.state for ledger in job.ledgers if ledger.usable and ledger.offer.certain]
    servers = job.partial.servers()

    def trust(index: int) -> int:
        return sum(bits >> index & 1 for bits in servers)

    ranked = sorted(usable, key=lambda state: (len(state.banned), -trust(state.index)))
    order = [state.index for state in ranked]
    if len(order) == 1 and any(bits >> UNKNOWN_SERVER & 1 for bits in servers):
        order *= 2  # first what an earlier run left, then everything
    return order


def _is_there(wanted: Wanted) -> bool:
    return wanted.place.is_file() and wanted.place.stat().st_size == wanted.file.size

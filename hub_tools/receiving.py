"""One worker's try to bring a byte range: ask, check the answer, write what comes."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from hub_tools.answers import (
    TryAgainError,
    WrongRangeError,
    check_answer,
    promised_digest,
)
from hub_tools.errors import HubProtocolError, HubUnreachableError, TransferError
from hub_tools.http import Stream, is_hopeless
from hub_tools.rate_limit import RateLimit
from hub_tools.scheduling import Schedule, Work
from hub_tools.transfer_options import TransferOptions

log = logging.getLogger(__name__)

# a read that came full is followed by a larger one: every read costs a turn at the interpreter,
# which all connections share, and a slow connection never fills a small one
_FIRST_READ = 1 << 17
_READ = 1 << 19  # more would save little, and two dozen connections hold one each
_REPORT = 1 << 20
_WRONG_RANGES = 2  # so many, and no range of that source is asked for any more


def _range_of(start: int, end: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{end - 1}"}


class StoppedError(Exception):
    """The transfer ends; what came is kept."""


class Receiver:
    """Brings ranges that a schedule hands out; shared by all workers."""

    def __init__(self, schedule: Schedule, options: TransferOptions) -> None:
        self._schedule, self._options = schedule, options
        self._limit = RateLimit(options.limit_rate)
        self._read = self._limit.read_size(_READ)

    def receive(self, work: Work) -> None:
        """Ask for a range once, and write what comes.

        Raises:
            TryAgainError: it did not come to its end; what came is kept.
            HubError: the hub refuses it.
            SupersededError, StoppedError: nobody wants it any more.
        """
        job, offer = work.job, work.ledger.offer
        size = job.wanted.file.size
        start, end = work.lease.position, work.lease.end
        whole = start == 0 and end == size
        headers = {} if whole or work.ledger.ignores_ranges else _range_of(start, end)
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(offer.source.http.stream(offer.url, headers=headers))
            except HubUnreachableError as error:
                if is_hopeless(error):
                    raise
                raise TryAgainError(error) from error
            self._check_stopping()
            try:
                packed = check_answer(job.wanted.file, offer, stream, start, end)
            except WrongRangeError as error:
                self._distrust_ranges(work, error)
                raise
            job.promised = job.promised or promised_digest(stream)
            if stream.status == 200 and not whole:
                self._take_whole(work)
            if packed:
                stream.unpack()
            self._schedule.began(work, stream)
            self._write(work, stream)

    def _distrust_ranges(self, work: Work, error: WrongRangeError) -> None:
        """From now on ask a source for whole files, where that is the last hope."""
        ledger = work.ledger
        ledger.wrong_ranges += 1
        if error.hopeless or ledger.wrong_ranges >= _WRONG_RANGES:
            ledger.ignores_ranges = True

    def _take_whole(self, work: Work) -> None:
        """The Range was ignored: the stream becomes the only one of its file, or is left."""
        job, ledger = work.job, work.ledger
        others = [other for other in job.ledgers if other is not ledger and other.usable]
        if job.only is None and any(not other.ignores_ranges for other in others):
            ledger.error = HubProtocolError(
                f"{ledger.state.source.label} ignores ranges of {job.wanted.file.path}"
            )
            raise TryAgainError(ledger.error)
        ledger.ignores_ranges = True
        lost = job.partial.restart(work.lease.generation)
        self._schedule.taken_whole(work, job.partial.lease(0, job.wanted.file.size), lost)

    def _write(self, work: Work, stream: Stream) -> None:
        partial, server = work.job.partial, work.ledger.state.index
        opened, arrived, unreported, paused = time.monotonic(), 0, 0, 0.0
        left, most = work.lease.left, min(_FIRST_READ, self._read)
        try:
            while left > 0:
                data = stream.read(min(most, left))
                self._check_stopping()
                if len(data) == most:
                    most = min(2 * most, self._read)
                if not data:
                    raise TryAgainError(self._lost(work, f"{left} bytes are missing"))
                before = work.lease.position
                left = partial.write(work.lease, data, server=server)
                count = work.lease.position - before
                arrived += count
                unreported += count
                if unreported >= _REPORT or left <= 0:
                    self._schedule.advanced(work, unreported)
                    unreported = 0
                paused += self._pause(len(data))
                seconds = time.monotonic() - opened - paused
                if seconds >= self._options.rate_window:
                    if arrived < self._options.lowest_rate * seconds:
                        raise TryAgainError(self._lost(work, "the bytes only trickle"))
                    opened, arrived, paused = time.monotonic(), 0, 0.0
        except HubUnreachableError as error:
            self._check_stopping()
            if work.lease.left <= 0:
                return  # somebody took the rest, and ended this stream
            raise TryAgainError(self._lost(work, str(error))) from error
        finally:
            if unreported:
                self._schedule.advanced(work, unreported)

    def _pause(self, amount: int) -> float:
        pause = self._limit.pause_after(amount)
        if pause > 0 and self._schedule.stopping.wait(pause):
            raise StoppedError
        return pause

    def _check_stopping(self) -> None:
        if self._schedule.stopping.is_set():
            raise StoppedError

    @staticmethod
    def _lost(work: Work, why: str) -> TransferError:
        return TransferError(f"{work.job.wanted.file.path} did not arrive: {why}")

"""What follows from a failed try: a wait, another source, or the end."""

from __future__ import annotations

import logging
import time

from hub_tools.answers import TryAgainError
from hub_tools.errors import HubError
from hub_tools.scheduling import FRUITFUL, Schedule, Work
from hub_tools.source_state import Ledger
from hub_tools.transfer_options import TransferOptions

log = logging.getLogger(__name__)

_ALL_FILES = 4  # failures in a row after which a source rests for every file


class Patience:
    """Keeps count of failures, for all workers."""

    def __init__(self, schedule: Schedule, options: TransferOptions) -> None:
        self._schedule, self._options = schedule, options

    def failed(self, work: Work, failure: TryAgainError) -> None:
        """Note a failed try.

        Raises:
            HubError: no source is left for the file.
        """
        now = time.monotonic()
        with self._schedule.guarded():
            delay = self._count(work, failure, now)
            given_up = work.ledger.error
        path, label = work.job.wanted.file.path, work.ledger.state.source.label
        if given_up is None:
            log.info("%s from %s: %s; again in %.1f s", path, label, failure, delay)
        self._schedule.give_back(work)
        if given_up is not None:
            self._without(work, given_up)

    def refused(self, work: Work, error: HubError) -> None:
        """Note that a source does not give a file at all.

        Raises:
            HubError: no source is left for the file.
        """
        with self._schedule.guarded():
            work.ledger.error = error
        self._schedule.give_back(work)
        self._without(work, error)

    def _count(self, work: Work, failure: TryAgainError, now: float) -> float:
        ledger, state = work.ledger, work.ledger.state
        retry = state.source.http.retry
        if work.brought >= FRUITFUL:
            ledger.failures, state.in_row = 0, 0
        # connections that broke together are one failure
        if ledger.failures == 0 or work.started >= ledger.counted:
            ledger.failures += 1
            state.in_row += 1
            ledger.counted = now
            ledger.since = now if ledger.failures == 1 else ledger.since
        delay = 0.0 if work.brought >= FRUITFUL else retry.delay(ledger.failures - 1, failure.after)
        if failure.after is not None:
            ledger.since += failure.after  # the hub's own wish is no fault
        ledger.retry_at = now + delay
        if failure.busy:
            state.fell_back()
        if failure.after is not None or state.in_row >= _ALL_FILES:
            state.benched_until = now + delay
        started = min(ledger.since, work.started)
        worn_out = work.brought < FRUITFUL and now - started >= self._options.patience
        if ledger.failures >= self._options.attempts or worn_out:
            ledger.error = ledger.error or failure.error
        return delay

    def _without(self, work: Work, error: HubError) -> None:
        job, label = work.job, work.ledger.state.source.label
        left: list[Ledger] = [ledger for ledger in job.ledgers if ledger.usable]
        on_trial = job.only is not None and not any(it.state.index == job.only for it in left)
        if not left or on_trial:
            raise error
        log.warning("%s is fetched without %s: %s", job.wanted.file.path, label, error)

"""Which connection fetches which bytes next, over all files and all sources.

A worker that is free takes the next byte range that a source with a free connection can bring; when
none is left, it takes half of the range that would take longest. A source that fails for a file
waits, then is given up for it; its ranges go back, and whoever is free takes them.
"""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hub_tools.http import Stream
from hub_tools.partial_file import Lease, PartialFile
from hub_tools.source_state import Ledger, SourceState
from hub_tools.sources import Source, Wanted
from hub_tools.transfer_options import TransferOptions
from hub_tools.trial import Trial

SMALL = 1 << 20
FRUITFUL = 1 << 16  # bytes that make a try a success of sorts
_SECONDS_PER_REQUEST = 3.0
_WORTH_STEALING = 0.5  # seconds that a range would still take, and that it was tried for
_WORTH_TAKING_OVER = 3.0
_LOOKED_AT = 256  # waiting files that are searched for one that a source has


@dataclass(slots=True, eq=False)
class Job:
    """One wanted file while it is worked on."""

    wanted: Wanted
    partial: PartialFile
    ledgers: Sequence[Ledger]
    free: list[tuple[int, int]] = field(default_factory=list)  # byte ranges nobody works on
    promised: str | None = None  # its sha256
    only: int | None = None  # on trial: the index of the one source that may bring bytes
    trial: Trial | None = None

    def ledger_for(self, state: SourceState, now: float) -> Ledger | None:
        """The ledger of a source that may fetch some of this file now."""
        if self.only is not None and state.index != self.only:
            return None
        for ledger in self.ledgers:
            if ledger.state is state and ledger.usable and ledger.retry_at <= now:
                others = any(other.usable and other.offer.certain for other in self.ledgers)
                return ledger if ledger.offer.certain or not others else None
        return None

    @property
    def left(self) -> int:
        return sum(end - start for start, end in self.free)


@dataclass(slots=True, eq=False)
class Work:
    """A byte range of a job, leased to one worker, from one source."""

    job: Job
    ledger: Ledger
    lease: Lease
    started: float
    first: int  # position at which it started
    stream: Stream | None = None

    @property
    def brought(self) -> int:
        return self.lease.position - self.first

    def seconds_left(self, now: float) -> float:
        """How long the rest will take at the pace so far."""
        elapsed = max(now - self.started, 1e-3)
        pace = self.brought / elapsed
        return self.lease.left / pace if pace else (elapsed + 1) * 10


Step = Work | Wanted  # a range to fetch, or a file to open


class Schedule:
    """The queue of a transfer; every method may be called from any thread."""

    def __init__(
        self, wanted: Sequence[Wanted], sources: Sequence[Source], options: TransferOptions
    ) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._over = threading.Condition(self._lock)
        self.stopping = threading.Event()
        self.states = [
            SourceState(source, index, options.connections) for index, source in enumerate(sources)
        ]
        # the largest first: a shard that starts last would end alone
        ordered = sorted(wanted, key=lambda item: -item.file.size)
        self._large = deque(item for item in ordered if item.file.size >= SMALL)
        self._small = deque(item for item in ordered if item.file.size < SMALL)
        self._deferred: list[tuple[float, Wanted]] = []
        self._jobs: list[Job] = []
        self._works: set[Work] = set()
        self._unfinished = len(ordered)
        self._unleased = sum(item.file.size for item in ordered)
        self._bytes = 0
        self.error: BaseException | None = None

    # --- the thread that waits for the end

    def wait(self, seconds: float) -> bool:
        """Wait a while for the end; returns whether it came."""
        with self._lock:
            if not self._is_over():
                self._over.wait(seconds)
            return self._is_over()

    def adapt(self) -> int:
        """Let sources have more or fewer connections; returns how many workers are needed."""
        now = time.monotonic()
        with self._lock:
            more = bool(self._large or self._small) or any(job.free for job in self._jobs)
            before = [state.allowed for state in self.states]
            for state in self.states:
                state.adapt(now, more_work=more)
            if before != [state.allowed for state in self.states]:
                self._changed.notify_all()
            return sum(state.allowed for state in self.states)

    def stop(self) -> None:
        """End all work; what came is kept."""
        self.stopping.set()
        with self._lock:
            self._changed.notify_all()
            streams = [work.stream for work in self._works if work.stream is not None]
        for stream in streams:
            # a worker may wait for bytes that are no longer wanted
            stream.abort()

    def fail(self, error: BaseException) -> None:
        """Note why the transfer ends; the first reason counts."""
        with self._lock:
            self.error = self.error or error
            self._over.notify_all()

    @property
    def received(self) -> int:
        """Bytes that came, less those that had to be dropped again."""
        with self._lock:
            return self._bytes

    # --- workers

    def next(self) -> Step | None:
        """The next thing to do; None when nothing will come any more."""
        with self._lock:
            while not self.stopping.is_set() and self._unfinished and self.error is None:
                step = self._next_step(time.monotonic())
                if step is not None:
                    return step
                self._changed.wait(self._nap(time.monotonic()))
        return None

    def defer(self, wanted: Wanted, seconds: float) -> None:
        """Put a file back that another process works on."""
        with self._lock:
            self._deferred.append((time.monotonic() + seconds, wanted))
            self._unleased += wanted.file.size
            self._changed.notify_all()

    def opened(self, job: Job) -> None:
        """Add a file's missing ranges to what is to be fetched."""
        with self._lock:
            self._bytes += job.partial.received
            job.free = job.partial.missing()
            self._unleased += job.left
            self._jobs.append(job)
            self._changed.notify_all()

    def reopened(self, job: Job, lost: int) -> None:
        """Bytes of a file were dropped: fetch what is missing now."""
        with self._lock:
            self._bytes -= lost
            self._unleased -= job.left
            job.free = job.partial.missing()
            self._unleased += job.left
            self._changed.notify_all()

    def taken_whole(self, work: Work, lease: Lease, lost: int) -> None:
        """A source sends the whole file, so its stream is the only work on it."""
        with self._lock:
            self._bytes -= lost
            self._unleased -= work.job.left
            work.job.free = []
            work.job.only = work.ledger.state.index
            work.lease, work.first = lease, lease.position

    def began(self, work: Work, stream: Stream) -> None:
        with self._lock:
            work.stream = stream

    def advanced(self, work: Work, amount: int) -> None:
        """Count bytes that came."""
        with self._lock:
            self._bytes += amount
            work.ledger.state.bytes += amount

    def ended(self, work: Work) -> None:
        """A range is complete, or was taken away."""
        now = time.monotonic()
        with self._lock:
            self._let_go(work, now)
            state, ledger = work.ledger.state, work.ledger
            state.answers += 1
            state.in_row = 0
            if work.brought >= FRUITFUL:
                ledger.failures = 0
            self._changed.notify()

    def dropped(self, work: Work) -> None:
        """A range became pointless, or the transfer stops."""
        with self._lock:
            self._let_go(work, time.monotonic())
            self._give_back(work)
            self._changed.notify_all()

    def give_back(self, work: Work) -> None:
        """End a failed try: what is left of its range is free again."""
        now = time.monotonic()
        with self._lock:
            self._let_go(work, now)
            self._give_back(work)
            work.ledger.state.failures += 1
            self._changed.notify_all()

    def finished(self, job: Job | None, *, amount: int = 0) -> None:
        """A file is at its place; `amount` of its bytes were not counted yet."""
        with self._lock:
            self._bytes += amount
            if job is not None:
                self._jobs.remove(job)
            self._unfinished -= 1
            if not self._unfinished:
                self._over.notify_all()
                self._changed.notify_all()

    def jobs(self) -> list[Job]:
        """The files that are open."""
        with self._lock:
            return list(self._jobs)

    def guarded(self) -> threading.Lock:
        """The lock that ledgers and states are changed under."""
        return self._lock

    # --- with the lock held

    def _is_over(self) -> bool:
        return not self._unfinished or self.error is not None

    def _let_go(self, work: Work, now: float) -> None:
        self._works.discard(work)
        state = work.ledger.state
        state.active -= 1
        state.measured(work.brought, now - work.started)

    def _give_back(self, work: Work) -> None:
        lease = work.lease
        if lease.left > 0 and lease.generation == work.job.partial.generation:
            insort(work.job.free, (lease.position, lease.end))
            self._unleased += lease.left

    def _nap(self, now: float) -> float | None:
        moments = [moment for moment, _ in self._deferred]
        moments += [state.benched_until for state in self.states]
        moments += [ledger.retry_at for job in self._jobs for ledger in job.ledgers]
        later = [moment - now for moment in moments if moment > now]
        # ranges that become worth stealing are found by looking again
        return max(0.02, min([*later, 0.5 if self._works else 5.0]))

    def _next_step(self, now: float) -> Step | None:
        for index, (moment, wanted) in enumerate(self._deferred):
            if moment <= now:
                del self._deferred[index]
                self._unleased -= wanted.file.size
                return wanted
        ready = [s for s in self.states if s.active < s.allowed and s.benched_until <= now]
        ready.sort(key=lambda state: state.active / state.allowed)
        for state in ready:
            step = self._step_for(state, now)
            if step is not None:
                return step
        for state in ready:
            work = self._stolen(state, now)
            if work is not None:
                return work
        return None

    def _step_for(self, state: SourceState, now: float) -> Step | None:
        # a quarter of the connections fetches small files, whose time is spent waiting for answers
        small = sum(work.job.wanted.file.size < SMALL for work in self._works)
        if self._small and small < max(1, state.allowed // 4) and self._large:
            return self._opening(self._small, state)
        for job in self._jobs:
            if job.free:
                ledger = job.ledger_for(state, now)
                if ledger is not None and not self._would_restart(job, ledger):
                    return self._work(job, ledger, now)
        return self._opening(self._large, state) or self._opening(self._small, state)

    def _would_restart(self, job: Job, ledger: Ledger) -> bool:
        """Whether whole files come from there, and a connection works on this one already."""
        return ledger.ignores_ranges and any(work.job is job for work in self._works)

    def _opening(self, queue: deque[Wanted], state: SourceState) -> Wanted | None:
        for index in range(min(len(queue), _LOOKED_AT)):
            if any(offer.source is state.source for offer in queue[index].offers):
                wanted = queue[index]
                del queue[index]
                self._unleased -= wanted.file.size
                return wanted
        return None

    def _work(self, job: Job, ledger: Ledger, now: float) -> Work:
        start, end = job.free.pop(0)
        size = self._request_size(ledger.state)
        if not ledger.ignores_ranges and end - start > size:
            part = job.partial.part_size
            cut = min(end, -(-(start + size) // part) * part)
            if cut < end:
                job.free.insert(0, (cut, end))
                end = cut
        self._unleased -= end - start
        return self._begin(job, ledger, job.partial.lease(start, end), now)

    def _begin(self, job: Job, ledger: Ledger, lease: Lease, now: float) -> Work:
        work = Work(job, ledger, lease, now, lease.position)
        self._works.add(work)
        ledger.state.active += 1
        return work

    def _request_size(self, state: SourceState) -> int:
        """As much as a few seconds bring, and less towards the end, so that all end together."""
        options = self._options
        wanted = state.connection_rate * _SECONDS_PER_REQUEST or 2 * options.smallest_request
        connections = sum(other.allowed for other in self.states)
        fair = self._unleased / max(1, connections)
        # towards the end, a slow connection must not be the one that everybody waits for
        least = min(options.smallest_request, state.connection_rate or options.smallest_request)
        return int(max(least, min(wanted, fair, options.largest_request)))

    def _stolen(self, state: SourceState, now: float) -> Work | None:
        """Half of the range that would take longest, or all of one that hardly moves."""
        for work in sorted(self._victims(now), key=lambda w: -w.seconds_left(now)):
            ledger = work.job.ledger_for(state, now)
            seconds = work.seconds_left(now)
            if ledger is None or seconds < _WORTH_STEALING:
                continue
            position, left = work.lease.position, work.lease.left
            if left >= 2 * work.job.partial.part_size and left >= self._options.part_size * 2:
                lease = work.job.partial.split(work.lease, position + left // 2)
            elif self._is_slow(work, state, now) and not (
                # once: a source that only trickles must fail, not be handed round for ever
                work.ledger is ledger and ledger.relieved
            ):
                ledger.relieved = True
                lease = work.job.partial.split(work.lease, 0)
                if work.stream is not None:
                    work.stream.abort()
            else:
                continue
            if lease is not None:
                return self._begin(work.job, ledger, lease, now)
        return None

    def _victims(self, now: float) -> Iterator[Work]:
        for work in self._works:
            if now - work.started < _WORTH_STEALING:
                continue  # its pace is not known yet, and what was sent already would be lost
            # a source that sends whole files only cannot be helped out with a range
            if not work.ledger.ignores_ranges and work.lease.left > 0:
                yield work

    def _is_slow(self, work: Work, state: SourceState, now: float) -> bool:
        elapsed = now - work.started
        if elapsed < _WORTH_TAKING_OVER or work.seconds_left(now) < _WORTH_TAKING_OVER:
            return False
        expected = work.lease.left / state.connection_rate if state.connection_rate else 1.0
        return expected * 2 < work.seconds_left(now)

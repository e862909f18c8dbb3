"""How a source does during a transfer: its speed, its failures, how many connections it may have.

All of it is guarded by the schedule's lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hub_tools.errors import HubError
from hub_tools.sources import Offer, Source

_FIRST = 8  # connections to begin with
_PAUSE = 0.25  # seconds between two looks at the rate
_GROWN = 1.12  # the rate must be this much higher for more connections to have paid
_PROBE = 5.0  # seconds after which a source is tried with more connections again
_MEMORY = 0.5  # weight of the newest rate


@dataclass(slots=True, eq=False)
class SourceState:
    """One source while bytes come from it, and perhaps from others."""

    source: Source
    index: int
    most: int  # connections
    allowed: int = 0
    active: int = 0
    bytes: int = 0
    answers: int = 0  # requests that came to a good end
    failures: int = 0
    in_row: int = 0
    benched_until: float = 0.0
    connection_rate: float = 0.0  # bytes per second of one connection
    banned: list[str] = field(default_factory=list)
    _steady: int = 0  # connections that paid
    _best: tuple[float, float] = (0.0, 0.0)  # bytes and answers per second with those
    _looked: float = 0.0
    _seen: tuple[int, int] = (0, 0)
    _next_probe: float = 0.0

    def __post_init__(self) -> None:
        self.allowed = self._steady = min(_FIRST, self.most)

    def adapt(self, now: float, *, more_work: bool) -> None:
        """Allow more connections while that makes the source faster, and fewer when it did not."""
        elapsed = now - self._looked
        if not self._looked or elapsed < _PAUSE:
            self._looked = self._looked or now
            return
        rates = (self.bytes - self._seen[0]) / elapsed, (self.answers - self._seen[1]) / elapsed
        self._looked, self._seen = now, (self.bytes, self.answers)
        if self.active < self.allowed or not more_work or not any(rates):
            return
        if self.allowed > self._steady or not any(self._best):
            self._judge(rates, now)
        elif now >= self._next_probe and self.allowed < self.most:
            self._best = rates
            self.allowed = min(self.most, self.allowed + max(2, self.allowed // 2))

    def _judge(self, rates: tuple[float, float], now: float) -> None:
        paid = any(new > _GROWN * old for new, old in zip(rates, self._best, strict=True))
        if paid:
            self._steady, self._best = self.allowed, rates
            self.allowed = min(self.most, 2 * self.allowed)
        else:
            self.allowed = self._steady
        self._next_probe = now + _PROBE

    def measured(self, amount: int, seconds: float) -> None:
        """Learn from a request how fast one connection is."""
        if amount < 1 << 16 or seconds <= 0:
            return
        rate = amount / seconds
        old = self.connection_rate or rate
        self.connection_rate = _MEMORY * rate + (1 - _MEMORY) * old

    def fell_back(self) -> None:
        """Take back connections that a busy hub refuses."""
        self.allowed = self._steady = max(1, self.allowed // 2)


@dataclass(slots=True, eq=False)
class Ledger:
    """How one source does for one file."""

    offer: Offer
    state: SourceState
    failures: int = 0  # in a row, with next to nothing in between
    since: float = 0.0  # of the first of them
    counted: float = 0.0  # of the last
    retry_at: float = 0.0
    error: HubError | None = None  # it is given up for this file, for this reason
    banned: bool = False
    wrong_ranges: int = 0
    ignores_ranges: bool = False  # or serves wrong ones: whole files are asked for
    relieved: bool = False  # another of its connections took over from a slow one already

    @property
    def usable(self) -> bool:
        return self.error is None and not self.banned

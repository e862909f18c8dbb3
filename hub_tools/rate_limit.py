"""A limit on bytes per second that all connections share."""

from __future__ import annotations

import threading
import time


class RateLimit:
    """Says how long to wait after bytes came; None for no limit.

    Args:
        rate: bytes per second over all who ask.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._paid_until = 0.0

    def pause_after(self, amount: int) -> float:
        """Seconds to wait after `amount` more bytes came."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            # time that nobody used is not saved up: it would come back as a burst
            self._paid_until = max(self._paid_until, now) + amount / self._rate
            return self._paid_until - now

    def read_size(self, most: int) -> int:
        """How much to read at once so that waits stay short."""
        if self._rate is None:
            return most
        return max(1 << 10, min(most, int(self._rate / 20)))

"""How long to wait before the next try, and what a hub asks for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait, and how often to try again."""

    attempts: int = 5
    first_delay: float = 0.5  # seconds; doubles each time, with jitter
    longest_delay: float = 20.0
    longest_retry_after: float = 120.0  # a hub that asks for more is not waited for
    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # of an API call, between two reads that bring something
    stall_timeout: float = 10.0  # the same for a file's bytes, which another connection can bring

    def delay(self, attempt: int, asked: float | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 0)."""
        if asked is not None:
            return asked
        delay = min(self.first_delay * float(2**attempt), self.longest_delay)
        return delay * random.uniform(0.75, 1.25)  # noqa: S311  jitter, not a secret


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, by `Retry-After` or `RateLimit: …;t=55`."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    for item in headers.get("RateLimit", "").split(";"):
        name, _, value = item.strip().partition("=")
        if name == "t" and value.isascii() and value.isdigit() and len(value) < 10:
            return float(value)
    return None

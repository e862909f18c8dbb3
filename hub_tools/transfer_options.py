"""How files are fetched; nothing here changes what arrives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """Connections, sizes and patience of a transfer."""

    # to each source, at most; it begins with a few, and grows while that pays
    connections: int = 24
    part_size: int = 1 << 18  # how finely it is noted which bytes are there
    smallest_request: int = 4 << 20  # bytes asked for at once: this much to begin with …
    largest_request: int = 64 << 20  # … and more while they come fast
    limit_rate: float | None = None  # bytes per second in all
    attempts: int = 6  # tries in a row that bring next to nothing, then a source is given up
    patience: float = 35.0  # seconds of such tries after which it is given up, too
    lowest_rate: float = 1024.0  # bytes per second …
    rate_window: float = 10.0  # … over this many seconds, or the connection is given up

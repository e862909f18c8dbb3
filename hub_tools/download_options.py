"""The options of `hub_tools.download`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import UsageError
from model_store.options import option

MOST_MIRRORS = 6
_LOWEST_RATE = 1000
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([kmg]i?b?|b?)(?:/s)?\Z", re.IGNORECASE)
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}{b}": 1000**n for n, prefix in enumerate("kmg", 1) for b in ("", "b")},
    **{f"{prefix}i{b}": 1024**n for n, prefix in enumerate("kmg", 1) for b in ("", "b")},
}


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """What to fetch, and where to."""

    name: str = option(
        "owner/name, hub:owner/name or hub:owner/name@revision; hubs are modelscope, huggingface"
        " and local",
        flag="",
    )
    revision: str | None = option(
        "branch, tag or commit (default: the hub's default branch)", default=None
    )
    local_dir: Path | None = option(
        "write plain files here, not into the store; a rerun completes and mends them",
        default=None,
        metavar="DIR",
        recorded=False,
    )
    offline: bool = option("ask no hub: use what the store has", default=False, recorded=False)
    also: tuple[str, ...] = option(
        "fetch equal files from here at the same time: huggingface:owner/name, or"
        " http://host/owner/name; may be repeated",
        default=(),
        metavar="NAME",
    )
    connections: int = option(
        "most connections to each source; fewer are used where more do not pay",
        default=24,
        metavar="N",
        recorded=False,
    )
    limit_rate: str | None = option(
        "bytes per second in all, such as 20MB or 500kB",
        default=None,
        metavar="RATE",
        recorded=False,
    )
    include: tuple[str, ...] = option(
        "only paths that match, such as '*.json' or 'assets/'; may be repeated",
        default=(),
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = option(
        "no path that matches; may be repeated", default=(), metavar="PATTERN"
    )
    verify: bool = option(
        "hash what is here already, and fetch again what is damaged", default=False
    )
    dry_run: bool = option("say what would be fetched, with sizes; fetch nothing", default=False)

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 64:
            raise UsageError(f"--connections is {self.connections}, not 1 to 64")
        if self.dry_run and self.offline:
            raise UsageError("--dry-run asks a hub, which --offline forbids")
        if len(self.also) > MOST_MIRRORS:
            raise UsageError(f"--also is given {len(self.also)} times, {MOST_MIRRORS} are possible")
        if self.limit_rate is not None:
            parse_rate(self.limit_rate)

    @property
    def bytes_per_second(self) -> float | None:
        """The limit as a number."""
        return None if self.limit_rate is None else parse_rate(self.limit_rate)


def parse_rate(text: str) -> float:
    """Read a rate such as `20MB`, `1.5 GB/s`, `500kB` or `64KiB`; without a unit it is bytes.

    Raises:
        UsageError: something else, or next to nothing.
    """
    match = _RATE.match(text.strip())
    rate = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if rate < _LOWEST_RATE:
        raise UsageError(
            f"--limit-rate is {text!r}, not a rate of at least 1kB", hint="Write 20MB, for example."
        )
    return rate


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """The options of `hub_tools.adopt`."""

    folder: Path = option("folder with a checkpoint", flag="")
    source: str | None = option(
        "where it came from: hub:owner/name@commit", default=None, metavar="NAME"
    )


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `hub_tools.verify`."""

    snapshot: str = option("snapshot folder, or a name that is in the store", flag="")

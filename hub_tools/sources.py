"""What to fetch, and the places that have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hub_tools.http import Http
from hub_tools.origins import shown_url
from hub_tools.protocol import RemoteFile


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One revision of a repository at a hub, as a place that bytes come from."""

    label: str  # as reports call it
    hub: str
    http: Http = field(repr=False)
    location: Callable[[str], str] = field(repr=False)  # a file's URL, by its path
    page: str = ""  # where a person reads about the repository
    account: Callable[[], str | None] = field(default=lambda: None, repr=False)  # whose token it is


@dataclass(frozen=True, slots=True)
class Offer:
    """A file at a source."""

    source: Source
    path: str
    certain: bool = True  # False: only path and size are the same; asked when nobody else is left

    @property
    def url(self) -> str:
        return self.source.location(self.path)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to fetch."""

    file: RemoteFile
    place: Path  # where the verified bytes go
    offers: tuple[Offer, ...]

    @property
    def identity(self) -> str:
        """What a leftover's bytes are: by digest, so that they serve any hub and revision."""
        file = self.file
        if file.sha256:
            return f"sha256:{file.sha256}"
        if file.git_sha1:
            return f"git:{file.git_sha1}"
        return f"url:{shown_url(self.offers[0].url)}#{file.path}"


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What one source did in a transfer."""

    label: str
    bytes: int
    failures: int
    banned: tuple[str, ...] = ()  # files of which it served wrong bytes, with the ranges

    def json(self) -> dict[str, object]:
        return {
            "source": self.label,
            "bytes": self.bytes,
            "failures": self.failures,
            "banned": list(self.banned),
        }

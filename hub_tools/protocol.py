"""What the rest of hub_tools may assume about any hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hub_tools.errors import HubProtocolError
from hub_tools.http import Http
from hub_tools.names import is_listing_pin
from model_store.canonical import canonical_digest
from model_store.paths import check_paths, check_relative_path

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SHA1 = re.compile(r"[0-9a-f]{40}\Z")
_LARGEST_FILE = 1 << 50  # a petabyte; also keeps sums within canonical JSON's integers
_MOST_FILES = 1_000_000


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of one revision, as the hub lists it."""

    path: str  # POSIX, relative to the repository root
    size: int  # bytes
    sha256: str | None = None  # lowercase hex, where the hub gives it
    git_sha1: str | None = None  # of the git blob, where the hub gives no sha256

    def __post_init__(self) -> None:
        check_relative_path(self.path)
        if not 0 <= self.size <= _LARGEST_FILE:
            raise HubProtocolError(f"the hub lists {self.path!r} with {self.size} bytes")
        if self.sha256 is not None and not _SHA256.match(self.sha256):
            raise HubProtocolError(f"the hub lists {self.path!r} with a malformed sha256")
        if self.git_sha1 is not None and not _SHA1.match(self.git_sha1):
            raise HubProtocolError(f"the hub lists {self.path!r} with a malformed git sha1")


def check_listing(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Sort a listing by path, and refuse one that no folder can hold.

    Raises:
        HubProtocolError: too many files.
        UnsafePathError: two paths clash.
    """
    listed = tuple(sorted(files, key=lambda file: file.path))
    if len(listed) > _MOST_FILES:
        raise HubProtocolError(f"the hub lists {len(listed)} files")
    check_paths(file.path for file in listed)
    return listed


def listing_pin(files: Iterable[RemoteFile]) -> str:
    """Pin a listing by its own digest, where the hub names no commit."""
    rows = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in files]
    return "listing-sha256:" + canonical_digest(rows)


@dataclass(frozen=True, slots=True)
class Pin:
    """A revision, pinned to what it names now."""

    hub: str
    repo_id: str
    revision: str  # as the hub calls it
    commit: str  # 40-hex, or listing-sha256:…
    files: tuple[RemoteFile, ...] | None = None  # when pinning took the listing anyway

    @property
    def may_move(self) -> bool:
        """Whether files are fetched by a movable name, so the listing must be read again."""
        return is_listing_pin(self.commit)


class HubClient(Protocol):
    """A hub that can pin, list and say where bytes are. Failures are HubErrors, never urllib3's."""

    @property
    def hub(self) -> str:
        """The hub's name: modelscope or huggingface."""
        ...

    @property
    def http(self) -> Http:
        """How the hub is reached."""
        ...

    def pin(self, repo_id: str, revision: str | None = None) -> Pin:
        """Pin a branch, tag or commit with one request; None is the default branch.

        Raises:
            RepoNotFoundError, RevisionNotFoundError, AuthError, GatedError: as the hub says.
            HubUnreachableError: no answer.
        """
        ...

    def files(self, pin: Pin) -> tuple[RemoteFile, ...]:
        """List a pinned revision, sorted by path."""
        ...

    def location(self, pin: Pin, path: str) -> str:
        """The URL of a file at the hub; it may redirect to signed storage, anew each time."""
        ...

    def page(self, repo_id: str) -> str:
        """The URL of a repository's page, for people."""
        ...

    def account(self) -> str | None:
        """The name of the account whose token is used, where the hub says it; never raises."""
        ...

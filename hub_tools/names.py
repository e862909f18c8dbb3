"""What a user may write for a model: a repository on some hub, or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from hub_tools.errors import BadNameError

MODELSCOPE = "modelscope"
HUGGINGFACE = "huggingface"
LOCAL = "local"
HUBS = (MODELSCOPE, HUGGINGFACE)  # in the order that a name without a hub is looked for
DEFAULT_BRANCH = {MODELSCOPE: "master", HUGGINGFACE: "main"}

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}\Z")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_LISTING = re.compile(r"listing-sha256:[0-9a-f]{64}\Z")
_ALIASES = frozenset({"master", "main"})


@dataclass(frozen=True, slots=True)
class RepoName:
    """A repository, where given its hub, and where given its revision."""

    owner: str
    name: str
    hub: str | None = None  # None: look on every hub, in order
    revision: str | None = None  # None: the default branch

    def __post_init__(self) -> None:
        for part in (self.owner, self.name):
            # two dots would climb once the name becomes a folder of the store
            if not _PART.match(part) or ".." in part or part.endswith("."):
                raise BadNameError(f"{part!r} is no owner or repository name")
        if self.hub is not None and self.hub not in (*HUBS, LOCAL):
            raise BadNameError(
                f"unknown hub {self.hub!r}", hint=f"Known hubs: {', '.join((*HUBS, LOCAL))}."
            )
        if self.revision is not None:
            check_revision(self.revision)

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.name}"

    def at(self, revision: str | None) -> RepoName:
        """The same repository at another revision; None keeps the one there is.

        Raises:
            BadNameError: both name a revision, and they differ.
        """
        if revision is None or revision == self.revision:
            return self
        if self.revision is not None:
            raise BadNameError(
                f"{self} and --revision {revision} contradict each other",
                hint="Give the revision once.",
            )
        return replace(self, revision=revision)

    def on(self, hub: str) -> RepoName:
        """The same repository on the given hub."""
        return replace(self, hub=hub)

    def __str__(self) -> str:
        hub = f"{self.hub}:" if self.hub else ""
        return hub + self.repo_id + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class FolderName:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Name = RepoName | FolderName


def check_revision(revision: str) -> str:
    """Return a branch, tag or commit that may be sent to a hub and kept as a file name.

    Raises:
        BadNameError: anything else.
    """
    if _LISTING.match(revision):
        return revision
    if not _REVISION.match(revision) or ".." in revision or "//" in revision:
        raise BadNameError(
            f"{revision!r} is no revision", hint="Give a branch, a tag or a commit id."
        )
    return revision


def is_commit(revision: str) -> bool:
    """Whether a revision is a full 40-hex commit id, which cannot move."""
    return _COMMIT.match(revision) is not None


def is_listing_pin(revision: str) -> bool:
    """Whether a revision is the digest of a listing, made where a hub names no commit."""
    return _LISTING.match(revision) is not None


def hub_revision(hub: str, revision: str | None) -> str:
    """What a hub calls a revision: none, `master` and `main` are its default branch."""
    if revision is None or revision in _ALIASES:
        return DEFAULT_BRANCH.get(hub, "main")
    return revision


def parse_name(text: str) -> Name:
    """Read what a user wrote for a model.

    A text that starts with `.`, `/` or `~`, or that is an existing folder, is a folder.

    Raises:
        BadNameError: neither a folder nor a repository's name.
    """
    if not text or "\0" in text:
        raise BadNameError(f"{text!r} is no name")
    if text.startswith((".", "/", "~")) or Path(text).is_dir():
        return FolderName(Path(text).expanduser())
    hub, colon, rest = text.partition(":")
    if not colon or "/" in hub or "@" in hub:
        hub, rest = "", text
    repo_id, at, revision = rest.partition("@")
    if at and not revision:
        raise BadNameError(f"{text!r} has no revision after its @")
    owner, slash, name = repo_id.partition("/")
    if not slash:
        raise BadNameError(f"{text!r} has no owner and is no folder")
    if "/" in name:
        raise BadNameError(f"{text!r} has more parts than owner/name, and is no folder")
    return RepoName(owner, name, hub or None, revision or None)


def parse_repo(text: str) -> RepoName:
    """Read the name of a repository; see `parse_name`.

    Raises:
        BadNameError: not a repository's name, or a folder.
    """
    name = parse_name(text)
    if isinstance(name, FolderName):
        raise BadNameError(f"{text!r} is a folder; a repository is needed here")
    return name

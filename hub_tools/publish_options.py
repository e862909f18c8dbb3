"""The options of `python -m hub_tools.publish`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hub_tools.errors import BadNameError
from hub_tools.names import HUBS, RepoName, is_commit, parse_repo
from model_store.errors import UsageError
from model_store.options import option

_RESERVED = frozenset({"main", "master", "HEAD"})


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """What to publish, where, and what may be missing."""

    snapshot: Path = option("snapshot folder, with records and card", flag="")
    to: tuple[str, ...] = option(
        "modelscope:owner/name or huggingface:owner/name; can be repeated",
        default=(),
        metavar="HUB:REPO",
    )
    revision_tag: str | None = option(
        "also tag the commit, for example v1.0.0", default=None, metavar="TAG"
    )
    private: bool = option("make a new repository private", default=True)
    allow_unverified: bool = option("publish without a green parity record", default=False)
    allow_card_problems: bool = option("publish although the card's lint complains", default=False)
    dry_run: bool = option("check everything and say what would be sent", default=False)

    def __post_init__(self) -> None:
        if not self.to:
            raise UsageError(
                "nowhere to publish to", hint="Add --to modelscope:owner/name, or another hub."
            )
        if len(set(self.to)) != len(self.to):
            raise UsageError("a destination is given twice", hint="Give each --to once.")
        if self.revision_tag is not None:
            _check_tag(self.revision_tag)
        for text in self.to:
            _destination(text)

    @property
    def destinations(self) -> tuple[RepoName, ...]:
        return tuple(_destination(text) for text in self.to)


def _destination(text: str) -> RepoName:
    name = parse_repo(text)
    if name.hub not in HUBS:
        raise BadNameError(
            f"{text!r} does not say which hub", hint=f"Begin with one of: {', '.join(HUBS)}."
        )
    if name.revision is not None:
        raise BadNameError(
            f"{text!r} has a revision",
            hint="Only the default branch is written; see --revision-tag.",
        )
    return name


def _check_tag(tag: str) -> None:
    RepoName("owner", "name", revision=tag)  # raises on what no hub takes
    if tag in _RESERVED or is_commit(tag) or ":" in tag:
        raise UsageError(f"{tag!r} cannot be a tag", hint="Take a name such as v1.0.0.")

"""Publish a snapshot: every destination is checked first, then each gets at most one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hub_tools.errors import (
    DestinationError,
    HeadMovedError,
    RepoNotFoundError,
    RevisionNotFoundError,
    UploadError,
)
from hub_tools.http import Http
from hub_tools.hubs import Surroundings
from hub_tools.huggingface_writer import HuggingFaceWriter
from hub_tools.modelscope_writer import ModelScopeWriter
from hub_tools.names import MODELSCOPE, RepoName, is_commit
from hub_tools.protocol import HubClient, Pin, RemoteFile
from hub_tools.publish_options import PublishOptions
from hub_tools.publishable import LocalFile, Publishable, check_publishable
from hub_tools.writing import Changes, HubWriter
from model_store.manifest import tool_version

# a hub makes it with the repository and needs it to recognise large files
_HUBS_OWN = frozenset({".gitattributes"})


@dataclass(frozen=True, slots=True)
class Published:
    """What one destination holds now, or would hold after a dry run."""

    hub: str
    repo_id: str
    commit: str | None  # None where a dry run would make one
    tag: str | None
    private: bool
    created: bool  # the repository was made
    files: int
    files_sent: int
    bytes_sent: int
    dry_run: bool = False

    def json(self) -> dict[str, Any]:
        return {
            "hub": self.hub,
            "repo_id": self.repo_id,
            "commit": self.commit,
            "tag": self.tag,
            "private": self.private,
            "created": self.created,
            "files": self.files,
            "files_sent": self.files_sent,
            "bytes_sent": self.bytes_sent,
            "dry_run": self.dry_run,
        }


@dataclass(frozen=True, slots=True)
class _Destination:
    """A repository, what it holds, and what is to be done to it."""

    name: RepoName
    client: HubClient
    writer: HubWriter
    head: Pin | None  # None: no such repository
    changes: Changes
    tag_is_there: bool


def publish(options: PublishOptions, around: Surroundings) -> list[Published]:
    """Publish a snapshot to every destination of `options`.

    Raises:
        PublishError: refused before anything was written, or a hub did not take it.
        HubError, StoreError: see `check_publishable` and `HubClient`.
    """
    access = (around.settings.modelscope, around.settings.huggingface)
    subject = check_publishable(
        options.snapshot,
        allow_unverified=options.allow_unverified,
        allow_card_problems=options.allow_card_problems,
        secrets=[hub.token for hub in access if hub.token is not None],
        progress=around.progress,
    )
    planned = [_plan(name, subject, options, around) for name in options.destinations]
    if options.dry_run:
        return [_would_be(destination, subject, options) for destination in planned]
    # each is looked at again: two dialects may lead to one repository, which exists by then
    return [
        _publish(_plan(name, subject, options, around), subject, options, around)
        for name in options.destinations
    ]


def _plan(
    name: RepoName, subject: Publishable, options: PublishOptions, around: Surroundings
) -> _Destination:
    client = around.client(str(name.hub))
    writer = _writer(str(name.hub), client.http)
    try:
        head = client.pin(name.repo_id)
    except RepoNotFoundError:
        return _Destination(name, client, writer, None, _changes(subject, ()), tag_is_there=False)
    _check_visibility(name, options, private=writer.is_private(name.repo_id))
    listed = client.files(head)
    tagged = options.revision_tag is not None and _is_tagged(name, client, subject, options)
    return _Destination(name, client, writer, head, _changes(subject, listed), tag_is_there=tagged)


def _writer(hub: str, http: Http) -> HubWriter:
    return ModelScopeWriter(http) if hub == MODELSCOPE else HuggingFaceWriter(http)


def _check_visibility(name: RepoName, options: PublishOptions, *, private: bool) -> None:
    if private != options.private:
        is_now, flag = ("private", "--private") if private else ("public", "--public")
        raise DestinationError(
            f"{name} exists and is {is_now}", hint=f"Say {flag}, or change it on its page first."
        )


def _is_tagged(
    name: RepoName, client: HubClient, subject: Publishable, options: PublishOptions
) -> bool:
    try:
        pin = client.pin(name.repo_id, options.revision_tag)
    except RevisionNotFoundError:
        return False
    if not _changes(subject, client.files(pin)).empty:
        raise DestinationError(
            f"{name} has a tag {options.revision_tag} with other files",
            hint="A tag does not move: take another --revision-tag.",
        )
    return True


def _changes(subject: Publishable, listed: Sequence[RemoteFile]) -> Changes:
    there = {file.path: file for file in listed}
    here = {file.path for file in subject.files}
    put = tuple(f for f in subject.files if not _same(f, there.get(f.path)))
    delete = tuple(sorted(path for path in there if path not in here | _HUBS_OWN))
    return Changes(put, delete, frozenset(file.path for file in put if file.path in there))


def _same(local: LocalFile, remote: RemoteFile | None) -> bool:
    if remote is None or remote.size != local.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == local.sha256
    # small files are listed by their git id only on Hugging Face
    return remote.git_sha1 is not None and remote.git_sha1 == _git_blob_id(local)


def _git_blob_id(file: LocalFile) -> str:
    digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with file.place.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _publish(
    destination: _Destination, subject: Publishable, options: PublishOptions, around: Surroundings
) -> Published:
    name, client, writer = destination.name, destination.client, destination.writer
    repo_id, changes, head = name.repo_id, destination.changes, destination.head
    if head is None:
        writer.create(repo_id, private=options.private, licence=_licence(subject))
        around.progress.log(f"{name}: created, {'private' if options.private else 'public'}")
        head = client.pin(repo_id)
        # some hubs put files of their own into a new repository
        changes = _changes(subject, client.files(head))
    sent = 0
    if not changes.empty:
        head, sent = _commit(destination, head, changes, subject, around)
    if options.revision_tag is not None and not destination.tag_is_there:
        _tag(destination, head, subject, options.revision_tag)
    # said at once: should the next destination fail, this one is done all the same
    around.progress.log(f"{name}: holds the snapshot at {head.commit}")
    return Published(
        hub=str(name.hub),
        repo_id=repo_id,
        commit=head.commit,
        tag=options.revision_tag,
        private=options.private,
        created=destination.head is None,
        files=len(subject.files),
        files_sent=len(changes.put),
        bytes_sent=sent,
    )


def _commit(
    destination: _Destination,
    head: Pin,
    changes: Changes,
    subject: Publishable,
    around: Surroundings,
) -> tuple[Pin, int]:
    name, client = destination.name, destination.client
    if client.pin(name.repo_id).commit != head.commit:
        raise HeadMovedError(f"{name} went on while this was prepared")
    sent = destination.writer.commit(
        name.repo_id,
        changes,
        parent=head.commit,
        message=f"Publish {subject.manifest.content_digest[:12]} with {tool_version()}",
        progress=around.progress,
    )
    now = client.pin(name.repo_id)
    if sent.commit is not None and now.commit != sent.commit:
        raise HeadMovedError(f"{name} is at {now.commit} and not at our commit {sent.commit}")
    _check_listed(name, client, now, subject)
    return now, sent.bytes_sent


def _check_listed(name: RepoName, client: HubClient, pin: Pin, subject: Publishable) -> None:
    """Read the listing again: what counts is what the hub says it has."""
    left = _changes(subject, client.files(pin))
    if not left.empty:
        path = [*(file.path for file in left.put), *left.delete][0]
        raise UploadError(f"{name} at {pin.commit} does not hold {path!r} as it was published")


def _tag(destination: _Destination, head: Pin, subject: Publishable, tag: str) -> None:
    name, client = destination.name, destination.client
    destination.writer.tag(name.repo_id, tag, commit=head.commit)
    pin = client.pin(name.repo_id, tag)
    if is_commit(pin.commit) and is_commit(head.commit) and pin.commit != head.commit:
        raise UploadError(f"{name}: tag {tag} names {pin.commit} and not {head.commit}")
    _check_listed(name, client, pin, subject)


def _licence(subject: Publishable) -> str:
    """The card's own word for its licence; "other" when it says nothing that can be read."""
    text = (subject.folder / "README.md").read_text(encoding="utf-8", errors="replace")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return "other"
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return "other"
    licence = values.get("license") if isinstance(values, Mapping) else None
    return licence if isinstance(licence, str) else "other"


def _would_be(
    destination: _Destination, subject: Publishable, options: PublishOptions
) -> Published:
    head, changes = destination.head, destination.changes
    return Published(
        hub=str(destination.name.hub),
        repo_id=destination.name.repo_id,
        commit=head.commit if head is not None and changes.empty else None,
        tag=options.revision_tag,
        private=options.private,
        created=head is None,
        files=len(subject.files),
        files_sent=len(changes.put),
        bytes_sent=sum(file.size for file in changes.put),
        dry_run=True,
    )

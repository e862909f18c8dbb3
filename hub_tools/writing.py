"""What publishing asks of a hub, and how bytes are sent to one: each file once, nothing hidden."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from hub_tools.errors import HubError, HubProtocolError, UploadError
from hub_tools.http import Http, Reply
from hub_tools.publishable import LocalFile
from hub_tools.replies import field_of, refusal, tame
from model_store.progress import Progress, Task


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit has to do."""

    put: tuple[LocalFile, ...]
    delete: tuple[str, ...]
    replaced: frozenset[str]  # those of `put` whose path the hub has already

    @property
    def empty(self) -> bool:
        return not self.put and not self.delete


@dataclass(frozen=True, slots=True)
class Sent:
    """What a commit cost; `commit` is None where the hub does not tell."""

    commit: str | None
    bytes_sent: int


class HubWriter(Protocol):
    """A hub that can be written to. Failures are HubErrors; the token stays with the hub."""

    def is_private(self, repo_id: str) -> bool:
        """Whether only its owners may read a repository that exists."""
        ...

    def create(self, repo_id: str, *, private: bool, licence: str) -> None:
        """Make an empty repository; `licence` is the card's identifier, such as apache-2.0."""
        ...

    def commit(
        self, repo_id: str, changes: Changes, *, parent: str, message: str, progress: Progress
    ) -> Sent:
        """Send missing bytes, then make one commit on the default branch.

        Raises:
            HeadMovedError: the branch is not at `parent` any more, where the hub can tell.
        """
        ...

    def tag(self, repo_id: str, tag: str, *, commit: str) -> None:
        """Name the default branch's `commit`."""
        ...


class _Watched(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, place: Path, task: Task) -> None:
        super().__init__(place, "r")
        self._task = task

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._task.advance(len(data))
        return data


def send_missing(
    http: Http,
    files: Sequence[LocalFile],
    *,
    ask: Callable[[Sequence[LocalFile]], Any],
    per_request: int,
    hub: str,
    progress: Progress,
) -> list[tuple[LocalFile, str | None]]:
    """Send what a hub does not have; return each sent file and the address to confirm it at.

    Args:
        http: how the hub is reached; addresses of other origins get no token.
        files: what the commit will name as large files.
        ask: sends one batch request and returns its `objects`.
        per_request: how many files a batch may name.
        hub: its name, for messages.
        progress: counts the bytes.
    """
    unique = list({file.sha256: file for file in files}.values())  # the same bytes go once
    offers: list[tuple[LocalFile, Mapping[str, Any]]] = []
    for start in range(0, len(unique), per_request):
        group = {file.sha256: file for file in unique[start : start + per_request]}
        for item in _objects(ask(list(group.values())), hub):
            file = group.pop(str(item.get("oid")), None)
            if file is None:
                raise HubProtocolError(f"{hub}: the answer names a file that was not asked about")
            offers.append((file, _actions(item, hub)))
        if group:
            raise HubProtocolError(
                f"{hub}: the answer leaves out {next(iter(group.values())).path}"
            )
    missing = [(file, actions) for file, actions in offers if "upload" in actions]
    with progress.task(f"send to {hub}", sum(f.size for f, _ in missing), unit="B") as task:
        return [_send(http, file, actions, hub, task) for file, actions in missing]


def _objects(value: Any, hub: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise HubProtocolError(f"{hub}: an upload batch was answered without objects")
    return value


def _actions(item: Mapping[str, Any], hub: str) -> Mapping[str, Any]:
    if "error" in item:
        raise UploadError(f"{hub} refuses a file: {tame(str(item['error']))}")
    actions = item.get("actions") or {}
    if not isinstance(actions, dict):
        raise HubProtocolError(f"{hub}: an upload batch has malformed actions")
    return actions


def _send(
    http: Http, file: LocalFile, actions: Mapping[str, Any], hub: str, task: Task
) -> tuple[LocalFile, str | None]:
    task.note(file.path)
    upload = actions["upload"]
    href = field_of(upload, "href", str, where=f"{hub}: upload of {file.path}")
    headers = {"Content-Length": str(file.size), "Content-Type": "application/octet-stream"}
    given = upload.get("header") or {}
    if "chunk_size" in given:
        raise UploadError(f"{hub} wants {file.path} in parts", hint="Write smaller shards.")
    headers |= {str(name): str(value) for name, value in given.items()}

    def opened() -> IO[bytes]:
        return _Watched(file.place, task)

    reply = http.request("PUT", href, headers=headers, body=opened)
    if not reply.ok:
        raise UploadError(f"{hub} answered {reply.status} to {file.path}{_said(reply)}")
    verify = actions.get("verify")
    where = f"{hub}: upload of {file.path}"
    return file, field_of(verify, "href", str, where=where) if verify else None


def _said(reply: Reply) -> str:
    words = said(reply)
    return f": {tame(words)}" if words else ""


def said(reply: Reply) -> str:
    """The hub's own words for a refusal, in either dialect."""
    if reply.headers.get("X-Error-Message"):
        return reply.headers["X-Error-Message"]
    try:
        value = reply.json()
    except HubProtocolError:
        return ""
    words = value.get("Message") or value.get("error") if isinstance(value, dict) else None
    return words if isinstance(words, str) else ""


def write_refusal(hub: str, http: Http, reply: Reply, what: str) -> HubError:
    """The error for a write that was refused."""
    if reply.status in (401, 403, 404, 429) or reply.status >= 500:
        return refusal(hub, http, reply.status, what, said=said(reply))
    return UploadError(f"{hub} answered {reply.status} for {what}{_said(reply)}")

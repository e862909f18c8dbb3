"""ModelScope's write API on plain HTTP: create, blob upload, one commit, tag.

The official client creates what is missing as public and Apache-2.0, and sends the token to
whatever host an upload address names; here neither happens.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from hub_tools.errors import HeadMovedError, HubProtocolError, UploadError
from hub_tools.http import Http, Reply
from hub_tools.names import MODELSCOPE
from hub_tools.publishable import LocalFile
from hub_tools.replies import field_of, tame
from hub_tools.writing import Changes, Sent, said, send_missing, write_refusal
from model_store.progress import Progress

_BRANCH = "master"
_PRIVATE, _PUBLIC = 1, 5
_OBJECTS_PER_BATCH = 64
_MOST_ACTIONS = 2000  # the site's limit for one commit
_BRANCH_CONFLICT = 10030000001
# the site reads these by itself, so they must not become pointers; all else that is large does
_INLINE = frozenset({"readme.md", "config.json", "configuration.json", ".gitattributes"})
_INLINE_LIMIT = 64 << 10
_LICENCES = {"apache-2.0": "Apache License 2.0", "mit": "MIT License"}


@dataclass(frozen=True, slots=True)
class ModelScopeWriter:
    """Writes model repositories; see `HubWriter`."""

    http: Http
    hub: str = MODELSCOPE

    def is_private(self, repo_id: str) -> bool:
        """See `HubWriter.is_private`."""
        data = self._call("GET", f"/api/v1/models/{quote(repo_id)}", repo_id)
        visibility: int = field_of(data, "Visibility", int, where=f"{self.hub}: {repo_id}")
        return visibility != _PUBLIC

    def create(self, repo_id: str, *, private: bool, licence: str) -> None:
        """See `HubWriter.create`; visibility and licence are always said."""
        owner, _, name = repo_id.partition("/")
        body = {
            "Path": owner,
            "Name": name,
            "Visibility": _PRIVATE if private else _PUBLIC,
            "License": _LICENCES.get(licence, "other"),
        }
        self._call("POST", "/api/v1/models", repo_id, json_body=body)

    def commit(
        self, repo_id: str, changes: Changes, *, parent: str, message: str, progress: Progress
    ) -> Sent:
        """See `HubWriter.commit`. This API takes no parent: the caller looks just before."""
        del parent
        if len(changes.put) + len(changes.delete) > _MOST_ACTIONS:
            raise UploadError(f"{self.hub} takes at most {_MOST_ACTIONS} files in one commit")
        large = [file for file in changes.put if _is_large(file)]
        done = send_missing(
            self.http,
            large,
            ask=lambda group: self._batch(repo_id, group),
            per_request=_OBJECTS_PER_BATCH,
            hub=self.hub,
            progress=progress,
        )
        actions = [_put(file, replaced=file.path in changes.replaced) for file in changes.put]
        actions += [{"action": "delete", "path": path, "type": "normal"} for path in changes.delete]
        self._call(
            "POST",
            f"/api/v1/repos/models/{quote(repo_id)}/commit/{_BRANCH}",
            repo_id,
            json_body={"commit_message": message, "actions": actions},
        )
        inline = sum(file.size for file in changes.put if not _is_large(file))
        return Sent(None, inline + sum(file.size for file, _ in done))

    def tag(self, repo_id: str, tag: str, *, commit: str) -> None:
        """See `HubWriter.tag`; the site tags a branch's head, and the caller looks afterwards."""
        del commit
        body = {"TagName": tag, "Ref": _BRANCH}
        self._call("POST", f"/api/v1/models/{quote(repo_id)}/repo/tag", repo_id, json_body=body)

    def _batch(self, repo_id: str, files: Sequence[LocalFile]) -> Any:
        objects = [{"oid": file.sha256, "size": file.size} for file in files]
        path = f"/api/v1/repos/models/{quote(repo_id)}/info/lfs/objects/batch"
        body = {"operation": "upload", "objects": objects}
        data = self._call("POST", path, repo_id, json_body=body, idempotent=True)
        return field_of(data, "objects", list, where=f"{self.hub}: upload batch")

    def _call(self, method: str, path: str, repo_id: str, **more: Any) -> Any:
        reply = self.http.request(method, path, **more)
        envelope = _envelope(reply)
        if envelope.get("Code") == _BRANCH_CONFLICT:
            raise HeadMovedError(f"{self.hub}: {repo_id} is being written to: {tame(said(reply))}")
        if not reply.ok:
            raise write_refusal(self.hub, self.http, reply, repo_id)
        if envelope.get("Success") is not True:  # a failure may come with HTTP 200
            raise UploadError(
                f"{self.hub} says no for {repo_id}: {tame(said(reply)) or 'no reason'}"
            )
        return envelope.get("Data")


def _envelope(reply: Reply) -> dict[str, Any]:
    try:
        value = reply.json()
    except HubProtocolError:
        if reply.ok:
            raise
        return {}  # the status says enough
    return value if isinstance(value, dict) else {}


def _is_large(file: LocalFile) -> bool:
    return file.size > _INLINE_LIMIT and PurePosixPath(file.path).name.lower() not in _INLINE


def _put(file: LocalFile, *, replaced: bool) -> dict[str, Any]:
    action = {"action": "update" if replaced else "create", "path": file.path, "size": file.size}
    if _is_large(file):
        return {**action, "type": "lfs", "sha256": file.sha256, "content": "", "encoding": ""}
    content = base64.b64encode(file.place.read_bytes()).decode()
    return {**action, "type": "normal", "sha256": "", "content": content, "encoding": "base64"}

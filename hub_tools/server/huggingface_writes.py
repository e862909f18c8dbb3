"""Writing to the local hub in Hugging Face's dialect: repositories, refs, uploads, commits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hub_tools.server.commits import Commit, Entry, is_lfs, lfs_entry
from hub_tools.server.http import Request, Response, Route, json_response, parse_object
from hub_tools.server.hub import Hub
from hub_tools.server.lfs import batch, lfs_object
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import Changes
from hub_tools.server.store import BlobStore

Values = Mapping[str, str]
_MOST_FILES = 1000


class HuggingFaceWrites:
    """Handlers of everything that changes something."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        api = "/api/models/{repo}"
        lfs = "/{repo}.git/info/lfs/objects"
        return [
            Route("POST", "/api/repos/create", self.create),
            Route("DELETE", "/api/repos/delete", self.delete),
            Route("PUT", api + "/settings", self.settings),
            Route("POST", api + "/preupload/{rev}", self.preupload),
            Route("POST", lfs + "/batch", self.lfs_batch),
            Route("POST", lfs + "/verify", self.lfs_verify),
            Route("GET", api + "/xet-write-token/{rev}", self.no_xet),
            Route("POST", api + "/commit/{rev}", self.commit),
            Route("POST", api + "/branch/{ref}", self.add_branch),
            Route("DELETE", api + "/branch/{ref}", self.drop_branch),
            Route("POST", api + "/tag/{rev}", self.add_tag),
            Route("DELETE", api + "/tag/{rev}", self.drop_tag),
        ]

    def create(self, request: Request, values: Values) -> Response:
        """Make a repository; one that exists is 409 with its address, which exist_ok reads."""
        self._hub.access.may_write(request)
        wanted = request.json()
        owner, name = _named(wanted)
        visibility = wanted.get("visibility")
        private = visibility == "private" if visibility else bool(wanted.get("private"))
        try:
            repo = self._hub.repositories.create(
                owner, name, private=private, license=str(wanted.get("license") or "")
            )
        except Problem as problem:
            if problem.reason is not Reason.ALREADY_EXISTS:
                raise
            error = {"error": problem.message, "url": f"{request.origin}/{owner}/{name}"}
            return json_response(error, status=409)
        return json_response(
            {"url": f"{request.origin}/{repo.id}", "name": repo.id, "id": repo.head[:24]}
        )

    def delete(self, request: Request, values: Values) -> Response:
        owner, name = _named(request.json())
        self._hub.repositories.delete(self._hub.writable(request, f"{owner}/{name}"))
        return json_response({})

    def settings(self, request: Request, values: Values) -> Response:
        """Change who may read a repository; other settings are unknown here."""
        repo = self._hub.writable(request, values["repo"])
        wanted = request.json()
        private = wanted.get("private")
        if isinstance(wanted.get("visibility"), str):
            private = wanted["visibility"] == "private"
        if not isinstance(private, bool):
            raise Problem(Reason.BAD_REQUEST, "only the visibility can be changed here")
        self._hub.repositories.edit(repo, lambda current: replace(current, private=private))
        return json_response({"private": private})

    def preupload(self, request: Request, values: Values) -> Response:
        """Say how each file is to be sent, and what the branch has at its path now."""
        repo = self._hub.writable(request, values["repo"])
        _, commit = self._hub.pinned(repo, values["rev"])
        files = request.json().get("files")
        if not isinstance(files, list) or len(files) > _MOST_FILES:
            raise Problem(Reason.BAD_REQUEST, "files must be a list, and not a very long one")
        return json_response({"files": [_upload_mode(item, commit) for item in files]})

    def lfs_batch(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        answer = batch(self._hub, request, verify=f"/{repo.id}.git/info/lfs/objects/verify")
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        return json_response(answer, headers=kind)

    def lfs_verify(self, request: Request, values: Values) -> Response:
        self._hub.writable(request, values["repo"])
        wanted = lfs_object(request.json())
        if not self._hub.blobs.has(wanted.oid, wanted.size):
            raise Problem(Reason.FILE_NOT_FOUND, f"object {wanted.oid[:12]} was not uploaded")
        return json_response({})

    def no_xet(self, request: Request, values: Values) -> Response:
        raise Problem(
            Reason.ROUTE_NOT_FOUND, "This hub has no Xet storage: set HF_HUB_DISABLE_XET=1"
        )

    def commit(self, request: Request, values: Values) -> Response:
        """Make one commit from a header line and one line for each file."""
        repo = self._hub.writable(request, values["repo"])
        if request.query.get("create_pr") not in (None, "", "0", "false"):
            raise Problem(Reason.BAD_REQUEST, "This hub has no pull requests")
        draft = _draft(request.body.read(), self._hub.blobs)
        commit = self._hub.repositories.change(
            repo, values["rev"], draft.changes(), message=draft.message, parent=draft.parent
        )
        url = f"{request.origin}/{repo.id}/commit/{commit.id}"
        return json_response({"success": True, "commitOid": commit.id, "commitUrl": url})

    def add_branch(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        start = request.json().get("startingPoint")
        target = self._hub.repositories.pin(repo, str(start or "main"))
        self._hub.repositories.add_ref(repo, "branches", values["ref"], target)
        return json_response({})

    def drop_branch(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        self._hub.repositories.drop_ref(repo, "branches", values["ref"])
        return json_response({})

    def add_tag(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        name = request.json().get("tag")
        target = self._hub.repositories.pin(repo, values["rev"])
        self._hub.repositories.add_ref(repo, "tags", str(name or ""), target)
        return json_response({})

    def drop_tag(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        self._hub.repositories.drop_ref(repo, "tags", values["rev"])
        return json_response({})


def _named(wanted: Mapping[str, Any]) -> tuple[str, str]:
    """Owner and name of a create or delete request; both spellings of old clients are taken."""
    if wanted.get("type") not in (None, "model"):
        raise Problem(Reason.BAD_REQUEST, "This hub holds models only")
    owner, slash, name = str(wanted.get("name") or "").rpartition("/")
    if not slash:
        owner = str(wanted.get("organization") or "local")
    return owner, name


def _upload_mode(item: Any, commit: Commit) -> dict[str, Any]:
    path = item.get("path") if isinstance(item, dict) else None
    size = item.get("size") if isinstance(item, dict) else None
    if not isinstance(path, str) or type(size) is not int:
        raise Problem(Reason.BAD_REQUEST, "a file needs its path and size")
    there = commit.entry(path)
    return {
        "path": path,
        "uploadMode": "lfs" if is_lfs(path, size) and size else "regular",
        "shouldIgnore": False,
        "oid": there.etag if there else None,
    }


@dataclass(slots=True)
class _Draft:
    """A commit as its lines come in."""

    message: str = ""
    parent: str | None = None
    put: list[Entry] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    delete_folders: list[str] = field(default_factory=list)

    def changes(self) -> Changes:
        return Changes(self.put, self.delete, self.delete_folders)


def _draft(body: bytes, blobs: BlobStore) -> _Draft:
    draft = _Draft()
    for line in body.splitlines():
        if not line.strip():
            continue
        item = parse_object(line)
        value = item.get("value")
        if not isinstance(value, dict):
            raise Problem(Reason.BAD_REQUEST, "a line has no value")
        _take(draft, str(item.get("key")), value, blobs)
    return draft


def _take(draft: _Draft, key: str, value: Mapping[str, Any], blobs: BlobStore) -> None:
    if key == "header":
        parts = [str(value.get(name) or "") for name in ("summary", "description")]
        draft.message = "\n\n".join(part for part in parts if part)
        draft.parent = value.get("parentCommit") or None
        return
    path = value.get("path")
    if not isinstance(path, str):
        raise Problem(Reason.BAD_REQUEST, f"a {key} line has no path")
    if key == "file":
        draft.put.append(inline_entry(path, value, blobs))
    elif key == "lfsFile":
        item = lfs_object(value)
        draft.put.append(lfs_entry(path, item.size, item.oid))
    elif key == "deletedFile":
        draft.delete.append(path)
    elif key == "deletedFolder":
        draft.delete_folders.append(path)
    else:
        raise Problem(Reason.BAD_REQUEST, f"unknown commit line {key!r}")


def inline_entry(path: str, value: Mapping[str, Any], blobs: BlobStore) -> Entry:
    """Store a file that came inside a commit, in either dialect.

    Raises:
        Problem: its content is not base64.
    """
    content = value.get("content")
    if not isinstance(content, str) or value.get("encoding", "base64") != "base64":
        raise Problem(Reason.BAD_REQUEST, f"{path}: the content must be base64")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(Reason.BAD_REQUEST, f"{path}: the content is not base64") from error
    digests = blobs.add(data)
    return Entry(path, digests.size, digests.sha256, digests.git_oid, lfs=False)

"""Hugging Face's write API on plain HTTP: create, LFS upload, one commit, tag.

The official client decides by itself to send large files over another protocol (Xet), which not
every hub with this API speaks; LFS is spoken by all of them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hub_tools.errors import HeadMovedError, UploadError
from hub_tools.http import Http, Reply
from hub_tools.names import HUGGINGFACE
from hub_tools.publishable import LocalFile
from hub_tools.replies import field_of
from hub_tools.writing import Changes, Sent, send_missing, write_refusal
from model_store.progress import Progress

_BRANCH = "main"
_FILES_PER_PREUPLOAD = 256
_OBJECTS_PER_BATCH = 100
_SAMPLE = 512
_LARGEST_IN_ONE_PIECE = 5_000_000_000  # what S3 takes in one PUT
_LFS_JSON = {
    "Content-Type": "application/vnd.git-lfs+json",
    "Accept": "application/vnd.git-lfs+json",
}


@dataclass(frozen=True, slots=True)
class HuggingFaceWriter:
    """Writes model repositories; see `HubWriter`."""

    http: Http
    hub: str = HUGGINGFACE

    def is_private(self, repo_id: str) -> bool:
        """See `HubWriter.is_private`."""
        value = self._call("GET", _api(repo_id), repo_id).json()
        private: bool = field_of(value, "private", bool, where=f"{self.hub}: {repo_id}")
        return private

    def create(self, repo_id: str, *, private: bool, licence: str) -> None:
        """See `HubWriter.create`; the licence is read from the card here."""
        del licence
        owner, _, name = repo_id.partition("/")
        visibility = "private" if private else "public"
        body = {"name": name, "organization": owner, "type": "model", "visibility": visibility}
        self._call("POST", "/api/repos/create", repo_id, json_body=body)

    def commit(
        self, repo_id: str, changes: Changes, *, parent: str, message: str, progress: Progress
    ) -> Sent:
        """See `HubWriter.commit`."""
        modes = self._modes(repo_id, changes.put)
        large = [file for file in changes.put if modes[file.path] == "lfs"]
        small = [file for file in changes.put if modes[file.path] != "lfs"]
        sent = self._upload(repo_id, large, progress)
        lines = [_line("header", {"summary": message, "description": "", "parentCommit": parent})]
        lines += [_inline(file) for file in small]
        lines += [_pointer(file) for file in large]
        lines += [_line("deletedFile", {"path": path}) for path in changes.delete]
        reply = self._call(
            "POST",
            f"{_api(repo_id)}/commit/{_BRANCH}",
            repo_id,
            headers={"Content-Type": "application/x-ndjson"},
            body=b"".join(lines),
        )
        commit = field_of(reply.json(), "commitOid", str, where=f"{self.hub}: commit")
        return Sent(commit, sent + sum(file.size for file in small))

    def tag(self, repo_id: str, tag: str, *, commit: str) -> None:
        """See `HubWriter.tag`."""
        self._call("POST", f"{_api(repo_id)}/tag/{commit}", repo_id, json_body={"tag": tag})

    def _modes(self, repo_id: str, files: Sequence[LocalFile]) -> Mapping[str, str]:
        """Ask which files go over LFS; their first bytes help the hub to decide."""
        modes: dict[str, str] = {}
        for start in range(0, len(files), _FILES_PER_PREUPLOAD):
            group = files[start : start + _FILES_PER_PREUPLOAD]
            reply = self._call(
                "POST",
                f"{_api(repo_id)}/preupload/{_BRANCH}",
                repo_id,
                json_body={"files": [_announced(file) for file in group]},
                idempotent=True,
            )
            where = f"{self.hub}: preupload"
            for item in field_of(reply.json(), "files", list, where=where):
                mode = field_of(item, "uploadMode", str, where=where)
                modes[field_of(item, "path", str, where=where)] = mode
        unanswered = [file.path for file in files if file.path not in modes]
        if unanswered:
            raise UploadError(f"{self.hub} does not say how to send {unanswered[0]}")
        return modes

    def _upload(self, repo_id: str, files: Sequence[LocalFile], progress: Progress) -> int:
        for file in files:
            if file.size > _LARGEST_IN_ONE_PIECE:
                raise UploadError(
                    f"{file.path} has more than 5 GB", hint="Write the weights in smaller shards."
                )
        done = send_missing(
            self.http,
            files,
            ask=lambda group: self._batch(repo_id, group),
            per_request=_OBJECTS_PER_BATCH,
            hub=self.hub,
            progress=progress,
        )
        for file, verify in done:
            if verify is not None:
                body = {"oid": file.sha256, "size": file.size}
                self._call(
                    "POST", verify, repo_id, headers=_LFS_JSON, json_body=body, idempotent=True
                )
        return sum(file.size for file, _ in done)

    def _batch(self, repo_id: str, files: Sequence[LocalFile]) -> Any:
        body = {
            "operation": "upload",
            "transfers": ["basic"],
            "objects": [{"oid": file.sha256, "size": file.size} for file in files],
            "hash_algo": "sha256",
            "ref": {"name": _BRANCH},
        }
        path = f"/{quote(repo_id)}.git/info/lfs/objects/batch"
        reply = self._call(
            "POST", path, repo_id, headers=_LFS_JSON, json_body=body, idempotent=True
        )
        return field_of(reply.json(), "objects", list, where=f"{self.hub}: upload batch")

    def _call(self, method: str, path: str, repo_id: str, **more: Any) -> Reply:
        reply = self.http.request(method, path, **more)
        if reply.status == 412:
            raise HeadMovedError(f"{self.hub}: {repo_id} went on while this was prepared")
        if not reply.ok:
            raise write_refusal(self.hub, self.http, reply, repo_id)
        return reply


def _api(repo_id: str) -> str:
    return f"/api/models/{quote(repo_id)}"


def _announced(file: LocalFile) -> dict[str, Any]:
    with file.place.open("rb") as source:
        sample = base64.b64encode(source.read(_SAMPLE)).decode()
    return {"path": file.path, "size": file.size, "sample": sample}


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    return json.dumps({"key": key, "value": dict(value)}).encode() + b"\n"


def _inline(file: LocalFile) -> bytes:
    content = base64.b64encode(file.place.read_bytes()).decode()
    return _line("file", {"content": content, "path": file.path, "encoding": "base64"})


def _pointer(file: LocalFile) -> bytes:
    value = {"path": file.path, "algo": "sha256", "oid": file.sha256, "size": file.size}
    return _line("lfsFile", value)

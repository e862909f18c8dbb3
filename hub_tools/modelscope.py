"""ModelScope's read API on plain HTTP: pin, list, locate.

A revision may come without a commit there; then the digest of the listing itself is the pin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from hub_tools.errors import HubError, HubProtocolError
from hub_tools.http import Http, Reply
from hub_tools.json_rows import RowReader
from hub_tools.names import MODELSCOPE, hub_revision, is_commit, is_listing_pin
from hub_tools.protocol import Pin, RemoteFile, check_listing, listing_pin
from hub_tools.replies import (
    field_of,
    names_in,
    optional_text,
    refusal,
    repo_not_found,
    revision_not_found,
)
from hub_tools.retries import RetryPolicy
from hub_tools.settings import HubAccess, Network, Secret

# a recursive listing is cut off here without a word; one that is longer was not cut off
_TRUNCATED_AT = 3000


def _auth(token: Secret) -> Mapping[str, str]:
    return {
        "Authorization": f"Bearer {token.reveal()}",
        "Cookie": f"m_session_id={token.reveal()}",
    }


@dataclass(frozen=True, slots=True)
class ModelScopeClient:
    """Reads model repositories; every file comes with a sha256."""

    http: Http
    hub: str = MODELSCOPE

    def pin(self, repo_id: str, revision: str | None = None) -> Pin:
        """See `HubClient.pin`; a second request takes the listing where no commit is named."""
        wanted = hub_revision(self.hub, None if is_listing_pin(revision or "") else revision)
        if is_commit(wanted):
            return Pin(self.hub, repo_id, wanted, wanted, self._listing(repo_id, wanted))
        commit = self._named_commit(repo_id, wanted)
        if commit is not None and not is_listing_pin(revision or ""):
            return Pin(self.hub, repo_id, wanted, commit)
        files = self._listing(repo_id, wanted)
        commit = listing_pin(files)
        if revision is not None and is_listing_pin(revision) and commit != revision:
            # the default branch went on, and a listing's digest cannot be asked for
            raise revision_not_found(
                self.hub, self.http, repo_id, revision, self._revisions(repo_id) or []
            )
        return Pin(self.hub, repo_id, wanted, commit, files)

    def files(self, pin: Pin) -> tuple[RemoteFile, ...]:
        """See `HubClient.files`; asks the hub again, also when pinning took the listing."""
        return self._listing(pin.repo_id, _fetched_as(pin))

    def location(self, pin: Pin, path: str) -> str:
        """See `HubClient.location`."""
        query = urlencode({"Revision": _fetched_as(pin), "FilePath": path}, quote_via=quote)
        return f"{self.http.endpoint}{_api(pin.repo_id)}/repo?{query}"

    def page(self, repo_id: str) -> str:
        """See `HubClient.page`."""
        return f"{self.http.endpoint}/models/{repo_id}"

    def account(self) -> str | None:
        """See `HubClient.account`."""
        try:
            reply = self.http.request("GET", "/openapi/v1/users/me")
            data = reply.json() if reply.ok else {}
        except HubError:
            return None
        return optional_text(data.get("data") if isinstance(data, dict) else None, "username")

    def _listing(self, repo_id: str, revision: str) -> tuple[RemoteFile, ...]:
        entries = self._entries(repo_id, revision, root="", recursive=True)
        if len(entries) == _TRUNCATED_AT:
            entries = self._walk(repo_id, revision)
        return check_listing(entry for entry in entries if isinstance(entry, RemoteFile))

    def _walk(self, repo_id: str, revision: str) -> list[RemoteFile | _Folder]:
        """List folder by folder, where the recursive listing was cut off."""
        found: list[RemoteFile | _Folder] = []
        folders, seen = [""], {""}
        while folders:
            folder = folders.pop()
            entries = self._entries(repo_id, revision, root=folder, recursive=False)
            if len(entries) == _TRUNCATED_AT:
                raise HubProtocolError(
                    f"{self.hub} cuts off the listing of {repo_id}/{folder} at {len(entries)} files"
                )
            found += [entry for entry in entries if isinstance(entry, RemoteFile)]
            below = [entry.path for entry in entries if isinstance(entry, _Folder)]
            folders += [path for path in below if path not in seen]
            seen.update(below)
        return found

    def _entries(
        self, repo_id: str, revision: str, *, root: str, recursive: bool
    ) -> list[RemoteFile | _Folder]:
        query = {"Revision": revision, "Recursive": str(recursive)} | (
            {"Root": root} if root else {}
        )
        where = f"{self.hub}: the listing of {repo_id}"
        reader = RowReader("Files", _entry, where=where)
        url = f"{_api(repo_id)}/repo/files?{urlencode(query)}"
        reply = self.http.request("GET", url, read=reader.read)
        if not reply.ok:
            raise self._refusal(reply, repo_id, revision)
        data = _data(reply, where)
        files = data.get("Files") if isinstance(data, dict) else None
        # an empty repository has null here
        if files is not None and not isinstance(files, list):
            raise HubProtocolError(f"{where} is no list")
        if files is None and reader.rows:
            raise HubProtocolError(f"{where} has its files elsewhere")
        return reader.rows

    def _refusal(self, reply: Reply, repo_id: str, revision: str) -> HubError:
        if reply.status != 404:
            return refusal(
                self.hub,
                self.http,
                reply.status,
                repo_id,
                said=_message(reply),
                page=self.page(repo_id),
                account=self.account,
            )
        # 404 does not say what is missing: ask for what must be there
        known = self._revisions(repo_id)
        if known is None:
            return repo_not_found(self.hub, self.http, repo_id, account=self.account)
        return revision_not_found(self.hub, self.http, repo_id, revision, known)

    def _named_commit(self, repo_id: str, revision: str) -> str | None:
        """The commit that a branch or tag names, where the hub says it."""
        groups = self._revision_map(repo_id)
        for group in ("Branches", "Tags"):
            rows = groups.get(group) if isinstance(groups, dict) else None
            for row in rows if isinstance(rows, list) else []:
                commit = optional_text(row, "CommitId") or ""
                if optional_text(row, "Revision") == revision and is_commit(commit):
                    return commit
        return None

    def _revisions(self, repo_id: str) -> list[str] | None:
        """Branches and tags, for a message; None when the repository is not there."""
        groups = self._revision_map(repo_id)
        if groups is None:
            return None
        return names_in(groups, "Tags", "Revision") + names_in(groups, "Branches", "Revision")

    def _revision_map(self, repo_id: str) -> Any:
        reply = self.http.request("GET", f"{_api(repo_id)}/revisions")
        try:
            data = _data(reply, f"{self.hub}: the revisions of {repo_id}") if reply.ok else None
        except HubProtocolError:
            return None
        return data.get("RevisionMap") if isinstance(data, dict) else None


def _fetched_as(pin: Pin) -> str:
    return pin.revision if pin.may_move else pin.commit


def _api(repo_id: str) -> str:
    return f"/api/v1/models/{quote(repo_id)}"


def _message(reply: Reply) -> str:
    try:
        return optional_text(reply.json(), "Message") or ""
    except HubProtocolError:
        return ""


def _data(reply: Reply, where: str) -> Any:
    envelope = reply.json()
    # a failure may come with HTTP 200
    if not isinstance(envelope, dict) or envelope.get("Success") is False:
        raise HubProtocolError(
            f"{where}: the hub says no ({_message(reply) or 'without a reason'})"
        )
    if envelope.get("Code", 200) != 200:
        raise HubProtocolError(f"{where}: code {envelope.get('Code')}: {_message(reply)}")
    return envelope.get("Data")


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str


def _entry(row: Any) -> RemoteFile | _Folder:
    path: str = field_of(row, "Path", str, where="modelscope listing")
    if optional_text(row, "Type") == "tree":
        return _Folder(path)
    size = field_of(row, "Size", int, where=f"modelscope listing of {path!r}")
    sha256 = optional_text(row, "Sha256")
    return RemoteFile(path, size, sha256=sha256.lower() if sha256 else None)


def modelscope_client(
    access: HubAccess, network: Network, retry: RetryPolicy | None = None
) -> ModelScopeClient:
    """Make a client for the configured endpoint."""
    http = Http(access.endpoint, network, access.token, auth=_auth, retry=retry or RetryPolicy())
    return ModelScopeClient(http)

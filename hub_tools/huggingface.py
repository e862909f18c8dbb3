"""Hugging Face's read API on plain HTTP: pin, list, locate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from hub_tools.errors import HubError, HubProtocolError
from hub_tools.http import Http, Reply
from hub_tools.names import HUGGINGFACE, hub_revision, is_commit
from hub_tools.protocol import Pin, RemoteFile, check_listing
from hub_tools.replies import (
    field_of,
    login_wanted,
    names_in,
    optional_text,
    refusal,
    repo_not_found,
    revision_not_found,
)
from hub_tools.retries import RetryPolicy
from hub_tools.settings import HubAccess, Network

_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')
_MOST_PAGES = 1000


@dataclass(frozen=True, slots=True)
class HuggingFaceClient:
    """Reads model repositories; large files come with a sha256, small ones with a git sha1."""

    http: Http
    hub: str = HUGGINGFACE

    def pin(self, repo_id: str, revision: str | None = None) -> Pin:
        """See `HubClient.pin`."""
        wanted = hub_revision(self.hub, revision)
        reply = self.http.request("GET", f"{_api(repo_id)}/revision/{quote(wanted, safe='')}")
        if not reply.ok:
            raise self._refusal(reply, repo_id, wanted)
        commit = field_of(reply.json(), "sha", str, where=f"{self.hub}: {repo_id}")
        if not is_commit(commit):
            raise HubProtocolError(f"{self.hub} pins {repo_id} to {commit!r}, which is no commit")
        return Pin(self.hub, repo_id, wanted, commit)

    def files(self, pin: Pin) -> tuple[RemoteFile, ...]:
        """See `HubClient.files`."""
        url = f"{_api(pin.repo_id)}/tree/{pin.commit}?recursive=true&expand=false"
        entries = (entry for page in self._pages(url, pin) for entry in page)
        return check_listing(
            _file(entry) for entry in entries if optional_text(entry, "type") != "directory"
        )

    def location(self, pin: Pin, path: str) -> str:
        """See `HubClient.location`."""
        return f"{self.http.endpoint}/{pin.repo_id}/resolve/{pin.commit}/{quote(path)}"

    def page(self, repo_id: str) -> str:
        """See `HubClient.page`."""
        return f"{self.http.endpoint}/{repo_id}"

    def account(self) -> str | None:
        """See `HubClient.account`."""
        try:
            reply = self.http.request("GET", "/api/whoami-v2")
            return optional_text(reply.json(), "name") if reply.ok else None
        except HubError:
            return None

    def _pages(self, url: str, pin: Pin) -> Iterator[list[Any]]:
        url = self.http.absolute(url)
        seen: set[str] = set()
        while url not in seen and len(seen) < _MOST_PAGES:
            seen.add(url)
            reply = self.http.request("GET", url)
            if not reply.ok:
                raise self._refusal(reply, pin.repo_id, pin.commit)
            page = reply.json()
            if not isinstance(page, list):
                raise HubProtocolError(f"{self.hub}: the listing of {pin.repo_id} is no list")
            yield page
            following = _NEXT.search(reply.headers.get("Link", ""))
            if following is None:
                return
            url = urljoin(url, following.group(1))
            if not self.http.is_own(url):
                raise HubProtocolError(f"{self.hub}: a listing goes on at another origin: refused")
        raise HubProtocolError(f"{self.hub}: the listing of {pin.repo_id} does not end")

    def _refusal(self, reply: Reply, repo_id: str, revision: str) -> HubError:
        code = reply.headers.get("X-Error-Code", "")
        said = reply.headers.get("X-Error-Message", "")
        if reply.status == 401 and code == "RepoNotFound" and self.http.token is None:
            # an anonymous 401 says no more than this
            return login_wanted(self.hub, self.http, repo_id)
        if reply.status == 401 and code != "RepoNotFound":
            return self._refused(401, repo_id, said)
        if code == "GatedRepo" or reply.status == 403:
            return self._refused(403, repo_id, said)
        if code == "RepoNotFound":
            return repo_not_found(self.hub, self.http, repo_id, account=self.account)
        if code == "RevisionNotFound" or reply.status == 404:
            known = self._revisions(repo_id)
            if known is None:
                return repo_not_found(self.hub, self.http, repo_id, account=self.account)
            return revision_not_found(self.hub, self.http, repo_id, revision, known)
        return self._refused(reply.status, repo_id, said)

    def _refused(self, status: int, repo_id: str, said: str) -> HubError:
        return refusal(
            self.hub,
            self.http,
            status,
            repo_id,
            said=said,
            page=self.page(repo_id),
            account=self.account,
        )

    def _revisions(self, repo_id: str) -> list[str] | None:
        """Branches and tags, for a message; None when the repository is not there."""
        reply = self.http.request("GET", f"{_api(repo_id)}/refs")
        if reply.status in (401, 404):
            return None
        refs = reply.json() if reply.ok else {}
        return names_in(refs, "tags", "name") + names_in(refs, "branches", "name")


def _api(repo_id: str) -> str:
    return f"/api/models/{quote(repo_id)}"


def _file(entry: Mapping[str, Any]) -> RemoteFile:
    path = field_of(entry, "path", str, where="huggingface listing")
    size = field_of(entry, "size", int, where=f"huggingface listing of {path!r}")
    lfs = entry.get("lfs")
    if lfs:
        # the outer size may be the pointer's; the object's own is the one to fetch
        size = field_of(lfs, "size", int, where=f"huggingface listing of {path!r}")
        return RemoteFile(path, size, sha256=field_of(lfs, "oid", str, where=path))
    return RemoteFile(path, size, git_sha1=optional_text(entry, "oid"))


def huggingface_client(
    access: HubAccess, network: Network, retry: RetryPolicy | None = None
) -> HuggingFaceClient:
    """Make a client for the configured endpoint."""
    return HuggingFaceClient(
        Http(access.endpoint, network, access.token, retry=retry or RetryPolicy())
    )

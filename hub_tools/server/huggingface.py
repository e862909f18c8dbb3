"""Reading the local hub in Hugging Face's dialect, as huggingface_hub 2.x asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from hub_tools.server.commits import Commit, Entry, git_blob_id, pointer
from hub_tools.server.http import Request, Response, Route, json_response
from hub_tools.server.hub import Hub, iso
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import DEFAULT_BRANCH, Repository

Values = Mapping[str, str]
_ERROR_CODES = {
    Reason.REPO_NOT_FOUND: "RepoNotFound",
    Reason.REVISION_NOT_FOUND: "RevisionNotFound",
    Reason.FILE_NOT_FOUND: "EntryNotFound",
}


def render(problem: Problem) -> Response:
    """Word a refusal the way huggingface_hub understands: by header first, then by body."""
    headers = {"X-Error-Message": problem.message, **problem.headers}
    if problem.reason in _ERROR_CODES:
        headers["X-Error-Code"] = _ERROR_CODES[problem.reason]
    return json_response({"error": problem.message}, status=problem.status, headers=headers)


class HuggingFaceReads:
    """Handlers of everything that changes nothing."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # a long listing is asked for page by page
        self._listed = lru_cache(maxsize=8)(self._tree_of)

    def routes(self) -> list[Route]:
        api = "/api/models/{repo}"
        return [
            Route("GET", "/api/whoami-v2", self.whoami),
            Route("GET", "/api/models", self.models),
            Route("GET", api, self.info),
            Route("GET", api + "/revision/{rev}", self.info),
            Route("GET", api + "/tree/{rev}", self.tree),
            Route("GET", api + "/tree/{rev}/{path*}", self.tree),
            Route("POST", api + "/paths-info/{rev}", self.paths_info),
            Route("GET", api + "/refs", self.refs),
            Route("GET", api + "/commits/{rev}", self.commits),
            Route("GET", "/{repo}/resolve/{rev}/{path*}", self.resolve),
            Route("GET", "/{repo}/raw/{rev}/{path*}", self.resolve),
            Route("POST", "/api/validate-yaml", self.validate_yaml),
        ]

    def whoami(self, request: Request, values: Values) -> Response:
        self._hub.access.require_token(request)
        token = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write"}}
        user = {"type": "user", "id": "local", "name": "local", "fullname": "local hub"}
        return json_response({**user, "email": "local@localhost", "orgs": [], "auth": token})

    def models(self, request: Request, values: Values) -> Response:
        """List the repositories that the caller may read, for list_models."""
        found = []
        for repo in self._hub.repositories:
            try:
                self._hub.access.may_read(request, repo)
            except Problem:
                continue
            wanted = request.query.get("search", "").casefold() in repo.id.casefold()
            if (
                wanted
                and request.query.get("author", repo.owner).casefold() == repo.owner.casefold()
            ):
                found.append(self._describe(repo, repo.head))
        return self._page(request, found)

    def info(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        commit_id, commit = self._hub.pinned(repo, values.get("rev", DEFAULT_BRANCH))
        with_blobs = request.query.get("blobs", "").lower() == "true"
        siblings = [_sibling(entry, with_blobs=with_blobs) for entry in commit.files]
        return json_response({**self._describe(repo, commit_id), "siblings": siblings})

    def _describe(self, repo: Repository, commit_id: str) -> dict[str, Any]:
        commit = self._hub.repositories.commit(repo, commit_id)
        return {
            "_id": commit_id[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.owner,
            "sha": commit_id,
            "lastModified": iso(commit.created),
            "createdAt": iso(commit.created),
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [f"license:{repo.license}"] if repo.license else [],
        }

    def tree(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        commit_id, _ = self._hub.pinned(repo, values["rev"])
        folder = values.get("path", "").strip("/")
        recursive = request.query.get("recursive", "").lower() == "true"
        items = self._listed(repo.id, commit_id, folder, recursive)
        if folder and not items:
            raise _no_file(repo, commit_id, folder)
        return self._page(request, items)

    def _tree_of(self, repo_id: str, commit_id: str, folder: str, recursive: bool) -> list[Any]:
        repo = self._hub.repositories.find(repo_id)
        commit = self._hub.repositories.commit(repo, commit_id) if repo else None
        return list(_tree(commit.files, folder, recursive=recursive)) if commit else []

    def paths_info(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        _, commit = self._hub.pinned(repo, values["rev"])
        form = request.body.read()
        if "json" in request.header("Content-Type"):
            raise Problem(Reason.BAD_REQUEST, "paths-info takes a form")
        wanted = parse_qs(form.decode("utf-8", "replace"), keep_blank_values=True).get("paths", [])
        known = {item["path"]: item for item in _tree(commit.files, "", recursive=True)}
        return json_response([known[p.strip("/")] for p in wanted if p.strip("/") in known])

    def refs(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        return json_response(
            {
                "branches": _refs("heads", repo.branches),
                "tags": _refs("tags", repo.tags),
                "converts": [],
                "pullRequests": [],
            }
        )

    def commits(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        start = self._hub.repositories.pin(repo, values["rev"])
        history = self._hub.repositories.history(repo, start)
        return self._page(request, [_commit(commit) for commit in history])

    def resolve(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        commit_id, commit = self._hub.pinned(repo, values["rev"])
        entry = commit.entry(values["path"])
        if entry is None:
            raise _no_file(repo, commit_id, values["path"])
        name = quote(PurePosixPath(entry.path).name)
        headers = {
            "X-Repo-Commit": commit_id,
            "Content-Disposition": f"inline; filename*=UTF-8''{name}",
        }
        if entry.lfs:
            headers["X-Linked-ETag"] = f'"{entry.sha256}"'
        return self._hub.send(request, entry, headers)

    def validate_yaml(self, request: Request, values: Values) -> Response:
        """Accept any card: what a card must say is checked where it is written."""
        request.json()
        return json_response({"errors": [], "warnings": []})

    def _page(self, request: Request, items: Sequence[Any]) -> Response:
        """Answer with one page of a list and, in Link, the address of the next."""
        size = self._hub.page_size
        if request.query.get("limit", "").isdecimal():
            size = max(1, min(size, int(request.query["limit"])))
        cursor = request.query.get("cursor", "0")
        start = int(cursor) if cursor.isdecimal() else 0
        headers = {}
        if start + size < len(items):
            query = urlencode({**request.query, "cursor": str(start + size)})
            headers["Link"] = f'<{request.origin}{request.path}?{query}>; rel="next"'
        return json_response(items[start : start + size], headers=headers)


def _no_file(repo: Repository, commit_id: str, path: str) -> Problem:
    # X-Repo-Commit lets the client remember that this commit has no such file
    headers = {"X-Repo-Commit": commit_id}
    message = f"{repo.id} has no {path!r} at {commit_id[:12]}"
    return Problem(Reason.FILE_NOT_FOUND, message, headers=headers)


def _sibling(entry: Entry, *, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": entry.path}
    item: dict[str, Any] = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        length = len(pointer(entry.sha256, entry.size))
        item["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": length}
    return item


def _file_item(entry: Entry) -> dict[str, Any]:
    # no xetHash: with one, the client would look for the bytes in another protocol
    item: dict[str, Any] = {
        "type": "file",
        "path": entry.path,
        "size": entry.size,
        "oid": entry.oid,
    }
    if entry.lfs:
        length = len(pointer(entry.sha256, entry.size))
        item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": length}
    return item


def folder_paths(paths: Iterable[str]) -> list[str]:
    """Every folder that holds one of `paths`, sorted."""
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return sorted(found)


def below(path: str, folder: str, *, recursive: bool) -> bool:
    """Whether `path` belongs to the listing of `folder` ("" is the root)."""
    if folder and not path.startswith(folder + "/"):
        return False
    rest = path.removeprefix(folder + "/") if folder else path
    return recursive or "/" not in rest


def _tree(files: Sequence[Entry], folder: str, *, recursive: bool) -> Iterable[dict[str, Any]]:
    for path in folder_paths(entry.path for entry in files):
        if below(path, folder, recursive=recursive):
            oid = git_blob_id(f"tree {path}".encode())  # no git tree is kept; any stable id serves
            yield {"type": "directory", "path": path, "oid": oid, "size": 0}
    for entry in files:
        if below(entry.path, folder, recursive=recursive):
            yield _file_item(entry)


def _refs(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
        for name, commit in sorted(refs.items())
    ]


def _commit(commit: Commit) -> dict[str, Any]:
    title, _, message = (commit.message or "initial commit").partition("\n")
    return {
        "id": commit.id,
        "title": title,
        "message": message.strip(),
        "authors": [{"user": "local"}],
        "date": iso(commit.created),
    }

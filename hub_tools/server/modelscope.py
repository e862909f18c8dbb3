"""Reading the local hub in ModelScope's dialect, as modelscope 1.40 asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from hub_tools.server.commits import Commit, Entry
from hub_tools.server.http import Request, Response, Route, json_response
from hub_tools.server.hub import Hub
from hub_tools.server.huggingface import below, folder_paths
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import DEFAULT_BRANCH, Repository

Values = Mapping[str, str]
BRANCH = "master"  # what this dialect calls the default branch
_WRONG_TOKEN = 10010103009
_CODES = {
    Reason.REPO_NOT_FOUND: 10010205001,
    Reason.REVISION_NOT_FOUND: 10010205002,
    Reason.FILE_NOT_FOUND: 10010205003,
    Reason.ALREADY_EXISTS: 10010101001,
    Reason.STALE_PARENT: 10030000001,  # the client reads again and retries
}
_OPENAPI_CODES = {
    Reason.BAD_REQUEST: "InputParameterError",
    Reason.TOKEN_WRONG: "InvalidAuthentication",
    Reason.TOKEN_MISSING: "InvalidAuthentication",
    Reason.FORBIDDEN: "OperationNotAllowed",
    Reason.ALREADY_EXISTS: "DuplicateEntity",
}


def envelope(data: Any, *, headers: Mapping[str, str] | None = None) -> Response:
    """Wrap an answer the way /api/v1 does."""
    value = {"Code": 200, "Data": data, "Message": "success", "RequestId": "", "Success": True}
    return json_response(value, headers=headers)


def render(problem: Problem) -> Response:
    """Word a refusal for /api/v1; a name that is taken is HTTP 400 there."""
    status = {Reason.ALREADY_EXISTS: 400, Reason.STALE_PARENT: 409}.get(problem.reason)
    code = _CODES.get(problem.reason, problem.status)
    value = {"Code": code, "Message": problem.message, "RequestId": "", "Success": False}
    return json_response(value, status=status or problem.status, headers=problem.headers)


def render_openapi(problem: Problem) -> Response:
    """Word a refusal for /openapi/v1."""
    code = _OPENAPI_CODES.get(problem.reason, "ResourceNotFound")
    value = {"success": False, "code": code, "message": problem.message, "request_id": ""}
    return json_response(value, status=problem.status, headers=problem.headers)


class ModelScopeReads:
    """Handlers of everything that changes nothing."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        api = "/api/v1/models/{repo}"
        return [
            Route("POST", "/api/v1/login", self.login),
            Route("GET", "/openapi/v1/users/me", self.me),
            Route("GET", "/openapi/v1/models", self.models),
            Route("GET", "/openapi/v1/models/{repo}", self.openapi_info),
            Route("GET", api, self.info),
            Route("GET", api + "/repo/files", self.files),
            Route("GET", api + "/revisions", self.revisions),
            Route("GET", api + "/repo", self.download),
            Route("GET", "/models/{repo}/resolve/{rev}/{path*}", self.resolve),
            Route("GET", "/api/v1/repos/internalAccelerationInfo", self.region),
        ]

    def login(self, request: Request, values: Values) -> Response:
        """Exchange a token for a session; the session cookie is the token itself."""
        token = request.json().get("AccessToken")
        if not isinstance(token, str) or not self._hub.access.is_token(token):
            refusal = {"Code": _WRONG_TOKEN, "Message": "AccessToken is invalid or expired"}
            return json_response({**refusal, "RequestId": "", "Success": False}, status=400)
        data = {"AccessToken": token, "Username": "local", "Email": "local@localhost"}
        cookie = f"m_session_id={token}; Path=/; HttpOnly; SameSite=Strict"
        safe = token.isascii() and token.isprintable() and not set(token) & set(';," \\')
        return envelope(data, headers={"Set-Cookie": cookie} if safe else {})

    def me(self, request: Request, values: Values) -> Response:
        self._hub.access.require_token(request)
        user = {"id": "local", "username": "local", "email": "local@localhost"}
        return _openapi(user)

    def models(self, request: Request, values: Values) -> Response:
        """List the repositories that the caller may read."""
        found = []
        for repo in self._hub.repositories:
            try:
                self._hub.access.may_read(request, repo)
            except Problem:
                continue
            wanted = request.query.get("search", "").casefold() in repo.id.casefold()
            if (
                wanted
                and request.query.get("owner", repo.owner).casefold() == repo.owner.casefold()
            ):
                found.append(_openapi_repo(repo))
        number, size = _number(request, "page_number", 1), _number(request, "page_size", 10)
        page = found[(number - 1) * size : number * size]
        counts = {"total_count": len(found), "page_number": number, "page_size": size}
        return _openapi({"models": page, **counts})

    def openapi_info(self, request: Request, values: Values) -> Response:
        return _openapi(_openapi_repo(self._hub.readable(request, values["repo"])))

    def info(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        return envelope(describe(repo))

    def files(self, request: Request, values: Values) -> Response:
        """List a revision; every file comes with its sha256. Never cut off, unlike the site's."""
        repo = self._hub.readable(request, values["repo"])
        commit_id, commit = self._hub.pinned(repo, request.query.get("Revision", BRANCH))
        folder = request.query.get("Root", "").strip("/")
        recursive = request.query.get("Recursive", "").lower() == "true"
        changes = self._hub.last_changes(repo.id, commit_id)
        items = list(_listing(commit.files, changes, folder, recursive=recursive))
        return envelope({"Files": items})

    def revisions(self, request: Request, values: Values) -> Response:
        repo = self._hub.readable(request, values["repo"])
        branches = {
            BRANCH if name == DEFAULT_BRANCH else name: commit
            for name, commit in repo.branches.items()
        }
        revisions = {"Branches": branches, "Tags": repo.tags}
        return envelope(
            {
                "RevisionMap": {
                    kind: [self._revision(repo, name, refs[name]) for name in sorted(refs)]
                    for kind, refs in revisions.items()
                }
            }
        )

    def _revision(self, repo: Repository, name: str, commit_id: str) -> dict[str, Any]:
        created = int(self._hub.repositories.commit(repo, commit_id).created)
        return {"Revision": name, "CreatedAt": created, "CommitId": commit_id}

    def download(self, request: Request, values: Values) -> Response:
        revision = request.query.get("Revision", BRANCH)
        return self._file(request, values["repo"], revision, request.query.get("FilePath", ""))

    def resolve(self, request: Request, values: Values) -> Response:
        return self._file(request, values["repo"], values["rev"], values["path"])

    def _file(self, request: Request, repo_id: str, revision: str, path: str) -> Response:
        repo = self._hub.readable(request, repo_id)
        _, commit = self._hub.pinned(repo, revision)
        entry = commit.entry(path)
        if entry is None:
            raise Problem(Reason.FILE_NOT_FOUND, f"{repo.id} has no file {path!r} at {revision!r}")
        linked = f'"{entry.sha256}"'
        return self._hub.send(request, entry, {"ETag": linked, "X-Linked-ETag": linked})

    def region(self, request: Request, values: Values) -> Response:
        return envelope({"InternalRegionQueryAddress": ""})


def _openapi(data: Any) -> Response:
    return json_response({"success": True, "data": data, "request_id": ""})


def _openapi_repo(repo: Repository) -> dict[str, Any]:
    return {
        "id": repo.id,
        "display_name": repo.name,
        "private": repo.private,
        "gated": False,
        "license": repo.license,
        "downloads": 0,
        "likes": 0,
    }


def describe(repo: Repository) -> dict[str, Any]:
    """A repository as /api/v1 describes it; visibility 1 is private, 5 public."""
    return {
        "Id": int.from_bytes(repo.id.encode()[-6:], "big"),
        "Path": repo.owner,
        "Name": repo.name,
        "Visibility": 1 if repo.private else 5,
        "License": repo.license,
        "Downloads": 0,
    }


def _number(request: Request, key: str, default: int) -> int:
    text = request.query.get(key, "")
    return max(1, int(text)) if text.isdecimal() else default


def _listing(
    files: Sequence[Entry], changes: Mapping[str, Commit], folder: str, *, recursive: bool
) -> Iterable[dict[str, Any]]:
    for path in folder_paths(entry.path for entry in files):
        if below(path, folder, recursive=recursive):
            yield {"Path": path, "Name": PurePosixPath(path).name, "Type": "tree", "Size": 0}
    for entry in files:
        if below(entry.path, folder, recursive=recursive):
            yield _file_item(entry, changes[entry.path])


def _file_item(entry: Entry, changed: Commit) -> dict[str, Any]:
    return {
        "Path": entry.path,
        "Name": PurePosixPath(entry.path).name,
        "Type": "blob",
        "Size": entry.size,
        "Sha256": entry.sha256,
        "IsLFS": entry.lfs,
        "Mode": "33188",
        "Revision": changed.id,
        "CommitMessage": changed.message,
        "CommittedDate": int(changed.created),
    }

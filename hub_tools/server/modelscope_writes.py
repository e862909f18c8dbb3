"""Writing to the local hub in ModelScope's dialect: repositories, blobs, commits, tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hub_tools.server.commits import Entry, lfs_entry
from hub_tools.server.http import Request, Response, Route
from hub_tools.server.hub import Hub
from hub_tools.server.huggingface_writes import inline_entry
from hub_tools.server.lfs import batch, lfs_object
from hub_tools.server.modelscope import describe, envelope
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import Changes

Values = Mapping[str, str]
_PRIVATE, _INTERNAL, _PUBLIC = 1, 3, 5
_MOST_ACTIONS = 2000  # as on the site


class ModelScopeWrites:
    """Handlers of everything that changes something."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        api = "/api/v1/models/{repo}"
        repos = "/api/v1/repos/models/{repo}"
        return [
            Route("POST", "/api/v1/models", self.create),
            Route("DELETE", api, self.delete),
            Route("DELETE", api + "/file", self.delete_file),
            Route("POST", api + "/repo/tag", self.add_tag),
            Route("POST", repos + "/info/lfs/objects/batch", self.lfs_batch),
            Route("POST", repos + "/commit/{branch}", self.commit),
        ]

    def create(self, request: Request, values: Values) -> Response:
        """Make a repository. The site makes it public when asked nothing; here that is refused."""
        self._hub.access.may_write(request)
        wanted = request.json()
        visibility = wanted.get("Visibility")
        if visibility not in (_PRIVATE, _INTERNAL, _PUBLIC):
            raise Problem(Reason.BAD_REQUEST, "Visibility must be 1, 3 or 5")
        repo = self._hub.repositories.create(
            str(wanted.get("Path") or "local"),
            str(wanted.get("Name") or ""),
            private=visibility != _PUBLIC,
            license=str(wanted.get("License") or ""),
        )
        return envelope(describe(repo))

    def delete(self, request: Request, values: Values) -> Response:
        self._hub.repositories.delete(self._hub.writable(request, values["repo"]))
        return envelope({})

    def delete_file(self, request: Request, values: Values) -> Response:
        path = request.query.get("FilePath", "")
        branch = request.query.get("Revision", "master")
        return self._change(
            request, values["repo"], branch, Changes(delete=[path]), "Delete a file"
        )

    def add_tag(self, request: Request, values: Values) -> Response:
        repo = self._hub.writable(request, values["repo"])
        wanted = request.json()
        target = self._hub.repositories.pin(repo, str(wanted.get("Ref") or "master"))
        name = str(wanted.get("TagName") or "")
        if name == "main":
            raise Problem(Reason.BAD_REQUEST, "'main' cannot name a tag")
        self._hub.repositories.add_ref(repo, "tags", name, target)
        return envelope({"Revision": name, "CommitId": target})

    def lfs_batch(self, request: Request, values: Values) -> Response:
        self._hub.writable(request, values["repo"])
        return envelope(batch(self._hub, request, verify=None))

    def commit(self, request: Request, values: Values) -> Response:
        """Make one commit from a list of actions."""
        self._hub.writable(request, values["repo"])
        wanted = request.json()
        actions = wanted.get("actions")
        if not isinstance(actions, list) or len(actions) > _MOST_ACTIONS:
            raise Problem(Reason.BAD_REQUEST, f"actions must be a list of at most {_MOST_ACTIONS}")
        put: list[Entry] = []
        delete: list[str] = []
        for action in actions:
            path, kind = _action(action)
            if kind == "delete":
                delete.append(path)
            else:
                put.append(self._entry(path, action))
        message = str(wanted.get("commit_message") or "")
        return self._change(
            request, values["repo"], values["branch"], Changes(put, delete), message
        )

    def _entry(self, path: str, action: Mapping[str, Any]) -> Entry:
        if action.get("type") == "lfs":
            item = lfs_object({"oid": action.get("sha256"), "size": action.get("size")})
            return lfs_entry(path, item.size, item.oid)
        return inline_entry(path, action, self._hub.blobs)

    def _change(
        self, request: Request, repo_id: str, branch: str, changes: Changes, message: str
    ) -> Response:
        repo = self._hub.writable(request, repo_id)
        commit = self._hub.repositories.change(repo, branch, changes, message=message, parent=None)
        url = f"{request.origin}/models/{repo.id}/commit/{commit.id}"
        return envelope({"oid": commit.id, "commit_url": url})


def _action(action: Any) -> tuple[str, str]:
    if not isinstance(action, dict) or not isinstance(action.get("path"), str):
        raise Problem(Reason.BAD_REQUEST, "an action needs its path")
    kind = action.get("action")
    if kind not in ("create", "update", "delete"):
        raise Problem(Reason.BAD_REQUEST, f"unknown action {kind!r}")
    return action["path"], kind

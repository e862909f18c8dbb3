"""What both dialects of the local hub share: finding a repository, opening a file, dates."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise

from hub_tools.server.access import Access
from hub_tools.server.commits import Commit, Entry
from hub_tools.server.http import Request, Response, file_response
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import Repositories, Repository
from hub_tools.server.store import BlobStore


class Hub:
    """The local hub's state, and the checks that come before any use of it."""

    def __init__(
        self, blobs: BlobStore, repositories: Repositories, access: Access, *, page_size: int
    ) -> None:
        self.blobs, self.repositories, self.access = blobs, repositories, access
        self.page_size = page_size
        self.last_changes = lru_cache(maxsize=256)(self._last_changes)

    def readable(self, request: Request, repo_id: str) -> Repository:
        """Find a repository that the caller may read.

        Raises:
            Problem: REPO_NOT_FOUND, or TOKEN_MISSING for a private one.
        """
        repo = self.repositories.find(repo_id)
        if repo is None:
            raise Problem(Reason.REPO_NOT_FOUND, f"Repository {repo_id} not found")
        self.access.may_read(request, repo)
        return repo

    def writable(self, request: Request, repo_id: str) -> Repository:
        """Find a repository that the caller may change; raises like `readable` and `may_write`."""
        self.access.may_write(request)
        return self.readable(request, repo_id)

    def pinned(self, repo: Repository, revision: str) -> tuple[str, Commit]:
        """Return the id and content of a revision's commit; Problem when there is none."""
        commit_id = self.repositories.pin(repo, revision)
        return commit_id, self.repositories.commit(repo, commit_id)

    def send(self, request: Request, entry: Entry, headers: dict[str, str]) -> Response:
        """Answer with a file's bytes."""
        shared = {"ETag": f'"{entry.etag}"', "X-Linked-Size": str(entry.size), **headers}
        file = self.blobs.open(entry.sha256, entry.size)
        return file_response(request, file, size=entry.size, headers=shared)

    def _last_changes(self, repo_id: str, commit_id: str) -> dict[str, Commit]:
        """For every file of a commit, the commit that gave it its present bytes."""
        repo = self.repositories.find(repo_id)
        if repo is None:
            return {}
        history = list(self.repositories.history(repo, commit_id))
        found = dict.fromkeys((entry.path for entry in history[0].files), history[-1])
        waiting = {entry.path: entry.sha256 for entry in history[0].files}
        for newer, older in pairwise(history):
            before = {entry.path: entry.sha256 for entry in older.files}
            for path in [path for path, sha in waiting.items() if before.get(path) != sha]:
                found[path] = newer
                del waiting[path]
        return found


def iso(seconds: float) -> str:
    """A time as Hugging Face writes it."""
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

"""Repositories of the local hub: branches and tags over commits, changed one at a time."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hub_tools.server.commits import (
    COMMIT_ID,
    Commit,
    Entry,
    make_commit,
    read_commit,
    write_commit,
)
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.store import BlobStore
from model_store.canonical import canonical_json, parse_json
from model_store.errors import StoreError, UnsafePathError
from model_store.files import write_bytes

DEFAULT_BRANCH = "main"  # shown as "master" in ModelScope's dialect
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
_REF = re.compile(r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9_][\w.+/-]{0,198}(?<![./])\Z")


@dataclass(frozen=True, slots=True)
class Repository:
    """What refs.json holds; a change makes a new value, so a reader never sees half of one."""

    owner: str
    name: str
    private: bool = False
    license: str = ""
    branches: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    imported: Mapping[str, str] = field(default_factory=dict)  # folder name -> commit it became
    follows_tags: bool = False  # nobody wrote the default branch: it is the newest tag

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def head(self) -> str:
        return self.branches[DEFAULT_BRANCH]

    def json(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "name": self.name,
            "private": self.private,
            "license": self.license,
            "branches": dict(self.branches),
            "tags": dict(self.tags),
            "imported": dict(self.imported),
            "follows_tags": self.follows_tags,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """What one commit does to a branch."""

    put: Sequence[Entry] = ()
    delete: Sequence[str] = ()
    delete_folders: Sequence[str] = ()

    def apply(self, files: Sequence[Entry]) -> list[Entry]:
        """Return the new listing.

        Raises:
            Problem: a file to delete is not there.
        """
        kept = {entry.path: entry for entry in files}
        for path in self.delete:
            if kept.pop(path, None) is None:
                raise Problem(Reason.BAD_REQUEST, f"cannot delete {path!r}: no such file")
        for folder in self.delete_folders:
            prefix = folder.rstrip("/") + "/"
            kept = {path: e for path, e in kept.items() if not path.startswith(prefix)}
        kept |= {entry.path: entry for entry in self.put}
        return list(kept.values())


class Repositories:
    """All repositories under `root/repos`; writers take turns, readers never wait."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root, self._blobs = root / "repos", blobs
        self._writing = threading.RLock()
        self._all = {(repo.owner, repo.name): repo for repo in self._read_all()}

    def _read_all(self) -> Iterator[Repository]:
        for path in sorted(self._root.glob("*/*/refs.json")):
            value = parse_json(path.read_bytes(), name=str(path))
            try:
                yield Repository(**value)
            except TypeError as error:
                raise StoreError(f"{path} is damaged: {error}") from error

    def __iter__(self) -> Iterator[Repository]:
        return iter(sorted(self._all.values(), key=lambda repo: repo.id))

    def find(self, repo_id: str) -> Repository | None:
        """Look a repository up; the owner may be written in another case."""
        owner, _, name = repo_id.partition("/")
        if (exact := self._all.get((owner, name))) is not None:
            return exact
        alike = [
            repo
            for (other, its_name), repo in list(self._all.items())
            if its_name == name and other.casefold() == owner.casefold()
        ]
        return alike[0] if len(alike) == 1 else None

    def folder(self, repo: Repository) -> Path:
        return self._root / repo.owner / repo.name

    def pin(self, repo: Repository, revision: str) -> str:
        """Turn a branch, tag or commit id into the commit id that it names now.

        Raises:
            Problem: REVISION_NOT_FOUND.
        """
        for prefix, refs in (("refs/heads/", repo.branches), ("refs/tags/", repo.tags)):
            if revision.startswith(prefix):
                return self._named(repo, refs, revision.removeprefix(prefix), revision)
        if COMMIT_ID.match(revision) and self._commit_path(repo, revision).is_file():
            return revision
        return self._named(repo, {**repo.tags, **repo.branches}, revision, revision)

    @staticmethod
    def _named(repo: Repository, refs: Mapping[str, str], name: str, asked: str) -> str:
        found = refs.get(name) or refs.get(DEFAULT_BRANCH if name == "master" else name)
        if found is None:
            raise Problem(Reason.REVISION_NOT_FOUND, f"{repo.id} has no revision {asked!r}")
        return found

    def holds(self, repo_id: str, commit_id: str) -> bool:
        """Whether a repository has a commit, without reading it."""
        repo = self.find(repo_id)
        return repo is not None and self._commit_path(repo, commit_id).is_file()

    def commit(self, repo: Repository, commit_id: str) -> Commit:
        return read_commit(self._commit_path(repo, commit_id))

    def _commit_path(self, repo: Repository, commit_id: str) -> Path:
        return self.folder(repo) / "commits" / f"{commit_id}.json"

    def history(self, repo: Repository, commit_id: str) -> Iterator[Commit]:
        """Walk from a commit to the first one, newest first, along first parents."""
        waiting: str | None = commit_id
        while waiting:
            commit = self.commit(repo, waiting)
            yield commit
            waiting = commit.parents[0] if commit.parents else None

    def create(self, owner: str, name: str, *, private: bool, license: str = "") -> Repository:
        """Make an empty repository with one empty commit, so that every branch has an id.

        Raises:
            Problem: a bad name, or ALREADY_EXISTS.
        """
        if not _NAME.match(owner) or not _NAME.match(name):
            raise Problem(Reason.BAD_REQUEST, f"{owner}/{name} is no valid repository name")
        with self._writing:
            if (there := self.find(f"{owner}/{name}")) is not None:
                raise Problem(Reason.ALREADY_EXISTS, f"{there.id} already exists")
            repo = Repository(owner, name, private=private, license=license)
            first = self.write(repo, make_commit([], parents=(), message="", created=time.time()))
            return self.save(replace(repo, branches={DEFAULT_BRANCH: first}))

    def change(
        self, repo: Repository, branch: str, changes: Changes, *, message: str, parent: str | None
    ) -> Commit:
        """Make one commit on a branch; the same bytes again make none.

        Args:
            repo: the repository as the request found it.
            branch: its name in either dialect.
            changes: what to do to the listing.
            message: for people.
            parent: the commit that the changes were made for; None takes whatever is there.

        Raises:
            Problem: no such branch, another parent, unsafe paths, or bytes that were never sent.
        """
        branch = canonical_branch(branch)
        with self._writing:
            repo = self._current(repo)
            if branch not in repo.branches:
                raise Problem(Reason.REVISION_NOT_FOUND, f"{repo.id} has no branch {branch!r}")
            head = repo.branches[branch]
            if parent is not None and parent != head:
                raise Problem(
                    Reason.STALE_PARENT, f"{branch} is at {head} now; expected was {parent}"
                )
            old = self.commit(repo, head)
            new = self._next(old, head, changes, message)
            if new.files == old.files:
                return old
            commit_id = self.write(repo, new)
            follows = repo.follows_tags and branch != DEFAULT_BRANCH
            self.save(
                replace(repo, branches={**repo.branches, branch: commit_id}, follows_tags=follows)
            )
            return new

    def _next(self, old: Commit, head: str, changes: Changes, message: str) -> Commit:
        for entry in changes.put:
            if not self._blobs.has(entry.sha256, entry.size):
                raise Problem(
                    Reason.BAD_REQUEST,
                    f"{entry.path}: its bytes (sha256 {entry.sha256[:12]}…) were not uploaded",
                )
        try:
            return make_commit(
                changes.apply(old.files), parents=(head,), message=message, created=time.time()
            )
        except UnsafePathError as error:
            raise Problem(Reason.BAD_REQUEST, str(error)) from error

    def add_ref(self, repo: Repository, kind: str, name: str, target: str) -> Repository:
        """Add a branch or a tag; `kind` is "branches" or "tags".

        Raises:
            Problem: a bad name, a reserved one, or ALREADY_EXISTS.
        """
        if not _REF.match(name) or COMMIT_ID.match(name) or name in ("master", "HEAD"):
            raise Problem(Reason.BAD_REQUEST, f"{name!r} cannot name a branch or tag")
        with self._writing:
            repo = self._current(repo)
            if name in repo.branches or name in repo.tags:
                raise Problem(Reason.ALREADY_EXISTS, f"{repo.id} already has a {name!r}")
            refs = {**getattr(repo, kind), name: target}
            return self.save(_with_refs(repo, kind, refs))

    def drop_ref(self, repo: Repository, kind: str, name: str) -> Repository:
        """Remove a branch or a tag; its commits stay readable by id.

        Raises:
            Problem: no such ref, or the default branch.
        """
        with self._writing:
            repo = self._current(repo)
            refs = dict(getattr(repo, kind))
            if kind == "branches" and canonical_branch(name) == DEFAULT_BRANCH:
                raise Problem(Reason.FORBIDDEN, "the default branch stays")
            if refs.pop(name, None) is None:
                raise Problem(Reason.REVISION_NOT_FOUND, f"{repo.id} has no {name!r}")
            return self.save(_with_refs(repo, kind, refs))

    def edit(self, repo: Repository, change: Callable[[Repository], Repository]) -> Repository:
        """Apply `change` to the newest state of a repository."""
        with self._writing:
            return self.save(change(self._current(repo)))

    def delete(self, repo: Repository) -> None:
        """Remove a repository that was made over the API; blobs stay.

        Raises:
            Problem: it mirrors a folder, which would bring it back at the next start.
        """
        with self._writing:
            if repo.imported:
                raise Problem(Reason.FORBIDDEN, f"{repo.id} is a folder of the hub's root")
            self._all.pop((repo.owner, repo.name), None)
            shutil.rmtree(self.folder(repo))

    def write(self, repo: Repository, commit: Commit) -> str:
        return write_commit(self.folder(repo) / "commits", commit)

    def save(self, repo: Repository) -> Repository:
        """Write refs.json, then let readers see it."""
        with self._writing:
            write_bytes(self.folder(repo) / "refs.json", canonical_json(repo.json()))
            self._all[repo.owner, repo.name] = repo
            return repo

    def _current(self, repo: Repository) -> Repository:
        found = self._all.get((repo.owner, repo.name))
        if found is None:
            raise Problem(Reason.REPO_NOT_FOUND, f"{repo.id} is gone")
        return found


def canonical_branch(name: str) -> str:
    """Both hubs' name of the default branch is ours."""
    name = name.removeprefix("refs/heads/")
    return DEFAULT_BRANCH if name == "master" else name


def _with_refs(repo: Repository, kind: str, refs: Mapping[str, str]) -> Repository:
    return replace(repo, branches=refs) if kind == "branches" else replace(repo, tags=refs)

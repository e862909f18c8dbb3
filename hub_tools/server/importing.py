"""Turn the plain folders of a hub's root into commits; the folders themselves are only read.

`ROOT/owner/name` is the default branch, `ROOT/owner/name@TAG` a tag. What was hashed once is not
hashed again while its size and time of change stay the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub_tools.server.commits import Entry, is_lfs, lfs_entry, make_commit
from hub_tools.server.repositories import DEFAULT_BRANCH, Repositories, Repository
from hub_tools.server.store import BlobStore, Digests, hash_file
from model_store.canonical import canonical_json, parse_json
from model_store.errors import StoreError, UnsafePathError
from model_store.files import write_bytes
from model_store.paths import check_relative_path
from model_store.progress import NoProgress, Progress

_SKIPPED = frozenset({".git", ".cache", "__pycache__"})
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was when it was hashed last."""

    mtime_ns: int
    digests: Digests

    def json(self) -> list[Any]:
        # a string: canonical JSON has no integers beyond 2⁵³
        return [str(self.mtime_ns), self.digests.size, self.digests.sha256, self.digests.git_oid]


def _seen(value: Any) -> _Seen:
    mtime_ns, size, sha256, git_oid = value
    return _Seen(int(mtime_ns), Digests(int(size), str(sha256), str(git_oid)))


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts v1.10 after v1.9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(text)]


class Importer:
    """Brings the repositories in line with the folders of `root`."""

    def __init__(self, root: Path, blobs: BlobStore, repositories: Repositories) -> None:
        self._root, self._blobs, self._repositories = root, blobs, repositories

    def run(self, *, progress: Progress | None = None) -> None:
        """Import every folder that is new or has changed.

        Raises:
            StoreError: a link that leaves the root, a file that no repository may hold, or a
                file that changed while it was read.
        """
        report = progress or NoProgress()
        with report.task("import", unit="files") as task:
            for owner, name, folders in self._found():
                repo = self._repositories.find(f"{owner}/{name}")
                if repo is None or repo.owner != owner:
                    repo = self._repositories.create(owner, name, private=False)
                    repo = replace(repo, follows_tags=True)
                for tag, folder in folders:
                    task.note(folder.name)
                    repo = self._import(repo, tag, folder, task.advance)
                self._repositories.save(_point_to_newest_tag(repo))

    def _found(self) -> Iterator[tuple[str, str, list[tuple[str, Path]]]]:
        for owner in _folders(self._root):
            by_name: dict[str, list[tuple[str, Path]]] = {}
            for folder in _folders(owner):
                name, _, tag = folder.name.partition("@")
                by_name.setdefault(name, []).append((tag, folder))
            for name, folders in by_name.items():
                yield owner.name, name, sorted(folders)

    def _import(self, repo: Repository, tag: str, folder: Path, count: Any) -> Repository:
        entries = self._entries(repo, tag, folder, count)
        old = repo.imported.get(folder.name)
        listing = make_commit(entries, parents=(), message="", created=time.time())
        if old is not None and self._repositories.commit(repo, old).files == listing.files:
            return repo  # unchanged since; commits made over the API stay on top
        # a folder's first import has no parent, so equal folders are equal commits
        first = old is None and (bool(tag) or repo.follows_tags)
        parents = () if first or tag else (repo.head,)
        commit_id = self._repositories.write(repo, replace(listing, parents=parents))
        repo = replace(repo, imported={**repo.imported, folder.name: commit_id})
        if tag:
            return replace(repo, tags={**repo.tags, tag: commit_id})
        branches = {**repo.branches, DEFAULT_BRANCH: commit_id}
        return replace(repo, branches=branches, follows_tags=False)

    def _entries(self, repo: Repository, tag: str, folder: Path, count: Any) -> list[Entry]:
        index = self._repositories.folder(repo) / f"import-{tag.replace('/', '%2F')}.json"
        known = _read_index(index)
        seen: dict[str, _Seen] = {}
        entries = []
        for path in self._files(folder):
            relative = path.relative_to(folder).as_posix()
            digests = self._digests(path, known.get(relative))
            self._blobs.adopt(path, digests)
            seen[relative] = _Seen(path.stat().st_mtime_ns, digests)
            entries.append(_entry(relative, digests))
            count()
        write_bytes(index, canonical_json({path: item.json() for path, item in seen.items()}))
        return entries

    def _digests(self, path: Path, known: _Seen | None) -> Digests:
        if known is not None:
            now = path.stat()
            if (now.st_size, now.st_mtime_ns) == (known.digests.size, known.mtime_ns):
                return known.digests
            self._blobs.forget_if_same_file(known.digests.sha256, path)
        return hash_file(path)

    def _files(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.name in _SKIPPED or path.name.endswith(".partial"):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(self._root.resolve()):
                raise StoreError(f"{path} is a link out of the hub's root")
            if path.is_dir() and not path.is_symlink():
                yield from self._files(path)
            elif path.is_file():
                yield path
            else:
                raise StoreError(f"{path} is neither a file nor a folder of files")


def _folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _entry(relative: str, digests: Digests) -> Entry:
    try:
        check_relative_path(relative)
    except UnsafePathError as error:
        error.hint = "Rename the file: no repository may hold such a name."
        raise
    if is_lfs(relative, digests.size):
        return lfs_entry(relative, digests.size, digests.sha256)
    return Entry(relative, digests.size, digests.sha256, digests.git_oid, lfs=False)


def _read_index(path: Path) -> dict[str, _Seen]:
    if not path.is_file():
        return {}
    try:
        return {name: _seen(v) for name, v in parse_json(path.read_bytes(), name=path.name).items()}
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged: {error}", hint="Delete it and start again."
        ) from error


def _point_to_newest_tag(repo: Repository) -> Repository:
    if not repo.follows_tags or not repo.tags:
        return repo
    newest = max(repo.tags, key=natural)
    return replace(repo, branches={**repo.branches, DEFAULT_BRANCH: repo.tags[newest]})

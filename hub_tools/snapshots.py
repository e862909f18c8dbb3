"""Snapshots: download them, find them again, copy them out of the store."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hub_tools.errors import HubUnreachableError
from hub_tools.fresh_folder import FreshFolder
from hub_tools.hubs import Located, Surroundings, locate
from hub_tools.landing import (
    Landed,
    check_not_moved,
    into_store,
    land,
    missing_files,
    store_place,
    wanted_files,
)
from hub_tools.local_manifest import local_manifest, without_manifest
from hub_tools.mirrors import MirrorName, find_mirrors, parse_mirror
from hub_tools.names import LOCAL, FolderName, RepoName, is_commit, parse_name, parse_repo
from hub_tools.partial_file import bytes_kept
from hub_tools.plain_copy import download_to, export_snapshot, missing_in
from hub_tools.protocol import Pin, RemoteFile
from hub_tools.selection import Selection
from hub_tools.stored import (
    LATEST,
    changed_files,
    find_stored,
    is_complete,
    local_result,
    remember,
    stored_or_offline_error,
)
from model_store.errors import DigestMismatchError, NotASnapshotError, UsageError
from model_store.files import exclusive
from model_store.manifest import (
    MANIFEST_NAME,
    FileEntry,
    read_manifest,
    verify_snapshot,
    write_manifest,
)
from model_store.paths import inside
from model_store.places import home as default_home
from model_store.progress import Progress
from model_store.snapshot_folder import check_target, new_snapshot

log = logging.getLogger(__name__)

_IN_STORE = "The store has it as it was last seen: run the same command with --offline."


@dataclass(frozen=True, slots=True)
class _Request:
    name: RepoName
    selection: Selection
    verify: bool
    around: Surroundings
    also: tuple[MirrorName, ...] = ()


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What a download would do."""

    pin: Pin
    files: tuple[RemoteFile, ...]  # all that are selected
    missing: tuple[RemoteFile, ...]  # those that would be fetched
    kept_bytes: int = 0  # of those, what an earlier run left

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What would come over the network."""
        return sum(file.size for file in self.missing) - self.kept_bytes


def download_snapshot(
    source: str | RepoName,
    *,
    revision: str | None = None,
    target: Path | None = None,
    offline: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    also: Sequence[str] = (),
    verify: bool = False,
    progress: Progress | None = None,
    around: Surroundings | None = None,
) -> Path:
    """Fetch one pinned revision of a repository, every byte verified; returns its folder.

    A complete snapshot that is in the store already costs the request that pins the revision.

    Args:
        source: `owner/name`, `hub:owner/name` or `hub:owner/name@revision`.
        revision: branch, tag or commit; the default branch when neither place names one.
        target: write a plain copy here instead of into the store.
        offline: ask no hub; use what the store has.
        include: patterns of the only files wanted.
        exclude: patterns of files not wanted.
        also: other repositories that have the same files, as `hub:owner/name` or as a URL; equal
            files come from all of them at once.
        verify: hash what is here already, and fetch again what is damaged.
        progress: told about bytes as they arrive.
        around: store, endpoints and tokens; by default the environment's.

    Raises:
        HubError: the hub refused, or could not be reached.
        DigestMismatchError: a file arrived wrong twice.
        UnsafePathError: the repository lists a path that would leave the folder.
        TargetExistsError: `target` holds something else.
    """
    request = _Request(
        _repo(source).at(revision),
        Selection(tuple(include), tuple(exclude)),
        verify,
        _around(around, progress),
        tuple(parse_mirror(text) for text in also),
    )
    target = Path(target).expanduser().absolute() if target is not None else None
    if request.name.hub == LOCAL:
        return _stored(request, local_result(request.around.home, request.name), target)
    suffix, home = request.selection.suffix, request.around.home
    if offline:
        return _stored(request, stored_or_offline_error(home, request.name, suffix=suffix), target)
    if target is not None:
        return _download_to(target, request)
    if is_commit(request.name.revision or "") and not verify:
        # a commit cannot move, so there is nothing to ask
        stored = find_stored(home, request.name, suffix=suffix)
        if stored is not None and not changed_files(stored):
            return stored
    return _download_into_store(request)


def resolve_snapshot(
    name_or_folder: str | Path,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    around: Surroundings | None = None,
) -> Path:
    """Find the snapshot that a step is to read: a folder, the store's copy, or a download.

    Raises:
        NotASnapshotError: a folder without a manifest, or a `local:` name that nothing made.
        HubError: see `download_snapshot`.
    """
    around = _around(around, progress)
    name = (
        FolderName(name_or_folder)
        if isinstance(name_or_folder, Path)
        else parse_name(name_or_folder)
    )
    if isinstance(name, FolderName):
        return _snapshot_folder(name.path)
    if name.hub == LOCAL:
        return local_result(around.home, name)
    stored = find_stored(around.home, name)
    if stored is not None:
        return stored
    return download_snapshot(name, offline=offline, around=around)


def local_target(repo: str | RepoName) -> Path:
    """Where a step writes its result when the user names no folder: `local:owner/name`."""
    name = _repo(repo)
    return default_home().repository(LOCAL, name.owner, name.name) / (name.revision or LATEST)


def plan_download(
    source: str | RepoName,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    target: Path | None = None,
    progress: Progress | None = None,
    around: Surroundings | None = None,
) -> DownloadPlan:
    """Say what a download would fetch, without fetching a file; see `download_snapshot`."""
    around = _around(around, progress)
    target = Path(target).expanduser().absolute() if target is not None else None
    located = locate(_repo(source).at(revision), around)
    files = _selected(located, Selection(tuple(include), tuple(exclude)))
    if target is not None:
        missing, place_of = missing_in(target, located.pin, files, around)
    else:
        place_of = store_place(around.home, located.pin)
        missing = missing_files(files, place_of, remove=False)
    kept = sum(
        bytes_kept(wanted.place, wanted.identity, wanted.file.size)
        for wanted in wanted_files(located, missing, place_of)
    )
    return DownloadPlan(located.pin, files, tuple(missing), kept)


def _repo(source: str | RepoName) -> RepoName:
    return parse_repo(source) if isinstance(source, str) else source


def _around(around: Surroundings | None, progress: Progress | None) -> Surroundings:
    found = around or Surroundings()
    return replace(found, progress=progress) if progress is not None else found


def _snapshot_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    if not folder.is_dir():
        raise NotASnapshotError(f"{folder} does not exist", hint="Check the path.")
    if not (folder / MANIFEST_NAME).is_file():
        raise NotASnapshotError(
            f"{folder} is no snapshot: it has no {MANIFEST_NAME}",
            hint=f"Make it one: python -m hub_tools.adopt {folder}",
        )
    read_manifest(folder)
    return folder


def _stored(request: _Request, folder: Path, target: Path | None) -> Path:
    if request.verify:
        verify_snapshot(folder, progress=request.around.progress)
    return folder if target is None else export_snapshot(folder, target)


def _selected(located: Located, selection: Selection) -> tuple[RemoteFile, ...]:
    pin = located.pin
    listed = pin.files if pin.files is not None else located.client.files(pin)
    selected = tuple(file for file in listed if selection.wants(file.path))
    if listed and not selected:
        raise UsageError(
            f"none of the {len(listed)} files is wanted by --include and --exclude",
            hint="See the names with --dry-run, without patterns.",
        )
    return selected


def _download_to(target: Path, request: _Request) -> Path:
    check_target(target, replace=True)  # before a hub is asked
    located = locate(request.name, request.around)
    files = _selected(located, request.selection)
    return download_to(
        target, located, files, request.around, also=request.also, verify=request.verify
    )


def _download_into_store(request: _Request) -> Path:
    around, name = request.around, request.name
    located = _locate(request)
    pin = located.pin
    folder = around.home.snapshot(
        pin.hub, name.owner, name.name, pin.commit + request.selection.suffix
    )
    lock = around.home.lock(f"{pin.hub}/{name.repo_id}/{folder.name}")
    with exclusive(lock, what=str(name)):
        if not is_complete(folder):
            _fill_store(folder, located, request)
        elif not _is_sound(folder, request):
            _fill_store(folder, located, replace(request, verify=True))
            if request.verify:
                verify_snapshot(folder)  # a damaged record cannot be fetched: say so
    remember(around.home, name, pin)
    return folder


def _locate(request: _Request) -> Located:
    """Ask the hubs; when none answers, say whether the store could do without them."""
    try:
        return locate(request.name, request.around)
    except HubUnreachableError as error:
        home, suffix = request.around.home, request.selection.suffix
        if find_stored(home, request.name, suffix=suffix) is None:
            raise
        raise HubUnreachableError(str(error), hint=_IN_STORE) from error


def _is_sound(folder: Path, request: _Request) -> bool:
    """Whether a complete snapshot has the right bytes; without `verify` only what was touched."""
    if not request.verify:
        for entry in changed_files(folder):
            log.warning("%s was changed in the store; fetching it again", entry.path)
            return False
        return True
    try:
        verify_snapshot(folder, progress=request.around.progress)
    except DigestMismatchError as error:
        log.warning("%s", error)
        return False
    return True


def _fill_store(folder: Path, located: Located, request: _Request) -> None:
    around = request.around
    files = _selected(located, request.selection)
    place_of = store_place(around.home, located.pin)
    mirrors = find_mirrors(request.also, around)
    landed = land(located, files, place_of, around, mirrors=mirrors, verify=request.verify)
    check_not_moved(located)
    stored = into_store(around.home, landed)
    added = _added_in_place(folder, stored)
    with new_snapshot(folder, replace=True) as building:
        fresh = FreshFolder(building)
        for item in without_manifest(stored):
            fresh.link(item.place, item.entry.path)
        for entry in added:
            fresh.link(inside(folder, entry.path), entry.path)
        write_manifest(building, local_manifest(located.pin, stored, added))


def _added_in_place(folder: Path, stored: Iterable[Landed]) -> list[FileEntry]:
    """Records and cards that were added to a snapshot that is now repaired."""
    try:
        old = read_manifest(folder)
    except NotASnapshotError:
        return []
    listed = {item.entry.path for item in stored}
    return [
        entry
        for entry in old.files
        if entry.path not in listed and inside(folder, entry.path).is_file()
    ]

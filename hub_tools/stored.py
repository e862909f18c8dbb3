"""What the store holds already: refs, complete snapshots, results of steps."""

from __future__ import annotations

import os
from pathlib import Path

from hub_tools.errors import OfflineError
from hub_tools.hubs import hubs_for
from hub_tools.names import LOCAL, RepoName, hub_revision, is_commit, is_listing_pin
from hub_tools.protocol import Pin
from model_store.errors import NotASnapshotError, StoreError
from model_store.files import sha256_file, write_text
from model_store.manifest import MANIFEST_NAME, FileEntry, read_manifest
from model_store.paths import inside
from model_store.places import Home

LATEST = "latest"


def remember(home: Home, name: RepoName, pin: Pin) -> None:
    """Note which commit a revision names now, for use without the network."""
    path = home.ref(pin.hub, name.owner, name.name, pin.revision)
    # most runs find the same commit again
    if _read_ref(path) != pin.commit:
        write_text(path, pin.commit + "\n")


def find_stored(home: Home, name: RepoName, *, suffix: str = "") -> Path | None:
    """The complete snapshot that a name's revision was pinned to last; asks no hub."""
    for hub in hubs_for(name):
        commit = _commit(home, hub, name)
        if commit is None:
            continue
        folder = home.snapshot(hub, name.owner, name.name, commit + suffix)
        if is_complete(folder):
            return folder
    return None


def stored_or_offline_error(home: Home, name: RepoName, *, suffix: str = "") -> Path:
    """Like `find_stored`.

    Raises:
        OfflineError: the store has no complete snapshot of it.
    """
    folder = find_stored(home, name, suffix=suffix)
    if folder is None:
        raise OfflineError(f"{name} is not in the store, and asking a hub was forbidden")
    return folder


def local_result(home: Home, name: RepoName) -> Path:
    """The snapshot that a step wrote under a `local:` name.

    Raises:
        NotASnapshotError: no step did.
    """
    folder = home.repository(LOCAL, name.owner, name.name) / (name.revision or LATEST)
    if not is_complete(folder):
        raise NotASnapshotError(
            f"{name.on(LOCAL)} is not in the store",
            hint="Make it with the step that writes it, or give a folder.",
        )
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file of a snapshot's manifest is there with its size; nothing is hashed."""
    try:
        entries = read_manifest(folder).files
        places = [inside(folder, entry.path) for entry in entries]
    except StoreError:
        return False
    return all(
        place.is_file() and not place.is_symlink() and place.stat().st_size == entry.size
        for entry, place in zip(entries, places, strict=True)
    )


def changed_files(folder: Path) -> list[FileEntry]:
    """The files of a complete snapshot that were written to after its manifest, and differ from it.

    One whose bytes are right after all is not looked at again. The time of change counts, which
    nobody can put back; another snapshot's link to the same bytes moves it, too.
    """
    manifest = folder / MANIFEST_NAME
    written = manifest.stat().st_ctime_ns
    touched = [
        entry
        for entry in read_manifest(folder).files
        if inside(folder, entry.path).stat().st_ctime_ns > written
    ]
    changed = [e for e in touched if sha256_file(inside(folder, e.path)) != e.sha256]
    if touched and not changed:
        os.utime(manifest)
    return changed


def _commit(home: Home, hub: str, name: RepoName) -> str | None:
    revision = hub_revision(hub, name.revision)
    if is_commit(revision) or is_listing_pin(revision):
        return revision
    return _read_ref(home.ref(hub, name.owner, name.name, revision))


def _read_ref(path: Path) -> str | None:
    try:
        commit = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    return commit if is_commit(commit) or is_listing_pin(commit) else None

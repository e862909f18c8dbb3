"""Write a snapshot to a folder of the user's: plain files that share nothing with the store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hub_tools.fresh_folder import FreshFolder
from hub_tools.hubs import Located, Surroundings
from hub_tools.landing import (
    Landed,
    PlaceOf,
    check_not_moved,
    digest_agrees,
    key_of,
    land,
    missing_files,
    store_place,
)
from hub_tools.local_manifest import local_manifest, without_manifest
from hub_tools.mirrors import MirrorName, find_mirrors
from hub_tools.protocol import Pin, RemoteFile
from hub_tools.stored import is_complete
from model_store.errors import TargetExistsError
from model_store.files import copy_file, exclusive, sha256_file
from model_store.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from model_store.paths import inside
from model_store.snapshot_folder import new_snapshot


def export_snapshot(folder: Path, target: Path) -> Path:
    """Copy a stored snapshot.

    Raises:
        TargetExistsError: `target` holds something else.
    """
    manifest = read_manifest(folder)
    if (target / MANIFEST_NAME).is_file():
        if read_manifest(target) == manifest and is_complete(target):
            return target
        raise TargetExistsError(f"{target} holds another snapshot", hint="Choose another target.")
    with new_snapshot(target) as building:
        fresh = FreshFolder(building)
        for entry in manifest.files:
            fresh.copy(inside(folder, entry.path), entry.path)
        write_manifest(building, manifest)
    return target


def download_to(
    target: Path,
    located: Located,
    files: Sequence[RemoteFile],
    around: Surroundings,
    *,
    also: Sequence[MirrorName] = (),
    verify: bool,
) -> Path:
    """Fetch files into a folder of the user's, or complete and repair an older run's.

    Raises:
        TargetExistsError: `target` holds something else.
        BusyError: another process writes there.
    """
    old = _older_copy(target, located.pin)
    lock = target.with_name(f".{target.name}.download.lock")
    with exclusive(lock, wait=False, what=str(target)):
        try:
            kept = _kept(target, old, files, verify=verify)
            rest = [file for file in files if file.path not in kept]
            # the published manifest is not kept as a file, so it always seems to be missing
            if old is None or any(file.path != MANIFEST_NAME for file in rest):
                landed = _land(target, located, rest, around, also)
                _write(target, old, located.pin, landed, kept)
            if _incoming(target).is_dir():
                shutil.rmtree(_incoming(target), ignore_errors=True)
                # the files lost their other name just now: that is no change of their bytes
                os.utime(target / MANIFEST_NAME)
        finally:
            lock.unlink(missing_ok=True)
    return target


def _incoming(target: Path) -> Path:
    """Where fetched files wait; it outlives a killed run, so that the next one goes on."""
    return target.with_name(f".{target.name}.incoming")


def _older_copy(target: Path, pin: Pin) -> Manifest | None:
    if not (target / MANIFEST_NAME).is_file():
        return None
    old = read_manifest(target)
    source = old.source
    wanted = (pin.hub, pin.repo_id, pin.commit)
    if source is None or (source.hub, source.repo_id, source.commit) != wanted:
        held = f"{source.repo_id} at {source.commit}" if source else "a snapshot made here"
        raise TargetExistsError(
            f"{target} holds {held}",
            hint="Choose another folder, or remove this one: what it holds is not overwritten.",
        )
    return old


def _kept(
    target: Path, old: Manifest | None, files: Sequence[RemoteFile], *, verify: bool
) -> dict[str, Landed]:
    """Files of an older run that need not be fetched again, a card written over one included."""
    kept = {}
    for file in files:
        entry = old.entry(file.path) if old is not None else None
        place = inside(target, file.path)
        if entry is None or not place.is_file() or place.stat().st_size != entry.size:
            continue
        if (verify or _is_touched(target, place)) and sha256_file(place) != entry.sha256:
            continue
        kept[file.path] = Landed(entry, place)
    return kept


def _is_touched(target: Path, place: Path) -> bool:
    """Whether a file was written to after the manifest; bytes that rot on the disk do not show."""
    return place.stat().st_ctime_ns > (target / MANIFEST_NAME).stat().st_ctime_ns


def _land(
    target: Path,
    located: Located,
    files: Sequence[RemoteFile],
    around: Surroundings,
    also: Sequence[MirrorName],
) -> list[Landed]:
    place_of = _places(target, located.pin, files, around)
    mirrors = find_mirrors(also, around)
    landed = land(located, files, place_of, around, mirrors=mirrors)
    check_not_moved(located)
    return landed


def missing_in(
    target: Path, pin: Pin, files: Sequence[RemoteFile], around: Surroundings
) -> tuple[list[RemoteFile], PlaceOf]:
    """What `download_to` would fetch, and where to; nothing is changed."""
    kept = _kept(target, _older_copy(target, pin), files, verify=False)
    rest = [file for file in files if file.path not in kept and file.path != MANIFEST_NAME]
    place_of = _places(target, pin, rest, around)
    return missing_files(rest, place_of, remove=False), place_of


def _places(target: Path, pin: Pin, files: Sequence[RemoteFile], around: Surroundings) -> PlaceOf:
    """Where each file's bytes are taken from: the store where it has them."""
    in_store = store_place(around.home, pin)
    incoming = _incoming(target)

    def choose(file: RemoteFile) -> Path:
        blob = in_store(file)
        if blob.is_file() and blob.stat().st_size == file.size and digest_agrees(file, blob):
            return blob
        return incoming / key_of(pin, file)

    places = {file.path: choose(file) for file in files}
    return lambda file: places[file.path]


def _write(
    target: Path,
    old: Manifest | None,
    pin: Pin,
    landed: Sequence[Landed],
    kept: dict[str, Landed],
) -> None:
    everything = [*landed, *kept.values()]
    if old is None:
        with new_snapshot(target) as building:
            _fill(FreshFolder(building), landed, waiting=_incoming(target))
            write_manifest(building, local_manifest(pin, everything))
        return
    for item in without_manifest(landed):
        copy_file(item.place, inside(target, item.entry.path))
    paths = {item.entry.path for item in everything}
    added = [entry for entry in old.files if entry.path not in paths]
    manifest = local_manifest(pin, everything, added)
    if manifest.content_digest == old.content_digest and not manifest.lineage:
        manifest = replace(manifest, lineage=old.lineage, tensors=old.tensors)
    write_manifest(target, manifest)


def _fill(folder: FreshFolder, landed: Sequence[Landed], *, waiting: Path) -> None:
    for item in without_manifest(landed):
        if item.place.parent == waiting:
            # its other name goes away at the end, so this is a copy without the second reading
            folder.link(item.place, item.entry.path, mode=0o644)
        else:
            folder.copy(item.place, item.entry.path)

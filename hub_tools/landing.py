"""Bring a listing's files to this machine: what is here already is used, the rest is fetched."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_tools.errors import RevisionMovedError
from hub_tools.hubs import Located, Surroundings
from hub_tools.mirrors import Mirror, Offers
from hub_tools.protocol import Pin, RemoteFile, listing_pin
from hub_tools.sources import Wanted
from hub_tools.transfer import fetch
from model_store.files import link_or_copy, sha256_file
from model_store.manifest import FileEntry
from model_store.places import Home

log = logging.getLogger(__name__)

PlaceOf = Callable[[RemoteFile], Path]


@dataclass(frozen=True, slots=True)
class Landed:
    """One file of a listing, and where its verified bytes are."""

    entry: FileEntry
    place: Path


def key_of(pin: Pin, file: RemoteFile) -> str:
    """A file name for a file's bytes: by digest where there is one."""
    if file.sha256:
        return file.sha256
    if file.git_sha1:
        return f"git-{file.git_sha1}"
    text = f"{pin.hub}/{pin.repo_id}/{pin.commit}/{file.path}"
    return "path-" + hashlib.sha256(text.encode()).hexdigest()


def store_place(home: Home, pin: Pin) -> PlaceOf:
    """Where files land in the store."""

    def place(file: RemoteFile) -> Path:
        if file.sha256:
            return home.blob(file.sha256)
        return home.git_blob(file.git_sha1) if file.git_sha1 else home.incoming(key_of(pin, file))

    return place


def is_here(file: RemoteFile, place: Path, *, verify: bool, remove: bool = True) -> bool:
    """Whether a file's bytes are at `place`: by size, and with `verify` by digest, too.

    With `remove` a wrong file is removed, so that it is fetched again.
    """
    if not place.is_file():
        return False
    sound = place.stat().st_size == file.size
    if sound and verify:
        sound = digest_agrees(file, place)
    if not sound and remove:
        log.warning("%s is damaged at %s; fetching it again", file.path, place)
        place.unlink()
    return sound


def digest_agrees(file: RemoteFile, place: Path) -> bool:
    """Hash a file by what its listing promises; a file without a promise agrees."""
    if file.sha256:
        return sha256_file(place) == file.sha256
    if not file.git_sha1:
        return True
    digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with place.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == file.git_sha1


def missing_files(
    files: Sequence[RemoteFile], place_of: PlaceOf, *, verify: bool = False, remove: bool = True
) -> list[RemoteFile]:
    """The files to fetch; of equal files only the first.

    `remove` takes wrong files out of the way.
    """
    missing: dict[Path, RemoteFile] = {}
    for file in files:
        place = place_of(file)
        if place not in missing and not is_here(file, place, verify=verify, remove=remove):
            missing[place] = file
    return list(missing.values())


def wanted_files(
    located: Located,
    files: Sequence[RemoteFile],
    place_of: PlaceOf,
    mirrors: Sequence[Mirror] = (),
) -> list[Wanted]:
    """What to fetch, where to, and who has it."""
    offers = Offers(located, mirrors)
    return [Wanted(file, place_of(file), offers.of(file)) for file in files]


def land(
    located: Located,
    files: Sequence[RemoteFile],
    place_of: PlaceOf,
    around: Surroundings,
    *,
    mirrors: Sequence[Mirror] = (),
    verify: bool = False,
) -> list[Landed]:
    """Fetch what is not here yet; every file's bytes are then at its place.

    Raises:
        HubError, DigestMismatchError: see `fetch`; what came is kept.
    """
    pin = located.pin
    for file in files:
        if not file.sha256 and not file.git_sha1 and file.size:
            log.warning("%s lists no digest for %s: it cannot be checked", pin.hub, file.path)
    missing = missing_files(files, place_of, verify=verify)
    wanted = wanted_files(located, missing, place_of, mirrors)
    fetched = fetch(wanted, options=around.transfer, progress=around.progress, label=pin.repo_id)
    around.reports.extend(fetched.sources)
    landed = []
    for file in files:
        place = place_of(file)
        sha256 = file.sha256 or fetched.digests.get(place) or sha256_file(place)
        landed.append(Landed(FileEntry(file.path, file.size, sha256), place))
    return landed


def into_store(home: Home, landed: Sequence[Landed]) -> list[Landed]:
    """Give files that landed under another name their blob's name, too."""
    stored = []
    for item in landed:
        blob = home.blob(item.entry.sha256)
        if item.place != blob and not (blob.is_file() and blob.stat().st_size == item.entry.size):
            link_or_copy(item.place, blob)
        stored.append(Landed(item.entry, blob))
    return stored


def check_not_moved(located: Located) -> None:
    """List a revision that may move once more.

    Raises:
        RevisionMovedError: what was fetched is not one state of it.
    """
    pin = located.pin
    if pin.may_move and listing_pin(located.client.files(pin)) != pin.commit:
        raise RevisionMovedError(f"{pin.repo_id}@{pin.revision} changed on {pin.hub} meanwhile")

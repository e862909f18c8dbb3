"""The manifest of a downloaded snapshot, with the lineage that its repository published."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hub_tools.landing import Landed
from hub_tools.protocol import Pin
from model_store.errors import StoreError
from model_store.manifest import MANIFEST_NAME, FileEntry, Manifest, Source, parse_manifest

log = logging.getLogger(__name__)

_LARGEST_MANIFEST = 64 << 20


def without_manifest(landed: Iterable[Landed]) -> list[Landed]:
    # a published manifest is checked like any file; the local one then takes its place
    return [item for item in landed if item.entry.path != MANIFEST_NAME]


def local_manifest(pin: Pin, landed: Sequence[Landed], added: Iterable[FileEntry] = ()) -> Manifest:
    entries = [item.entry for item in without_manifest(landed)]
    source = Source(pin.hub, pin.repo_id, pin.revision, pin.commit)
    manifest = Manifest((*entries, *added), source)
    published = next((item for item in landed if item.entry.path == MANIFEST_NAME), None)
    return _with_lineage(manifest, published) if published else manifest


def _with_lineage(manifest: Manifest, published: Landed) -> Manifest:
    """Take over what a published manifest says about exactly these files."""
    try:
        if published.entry.size > _LARGEST_MANIFEST:
            raise StoreError(f"it has {published.entry.size} bytes")
        theirs = parse_manifest(published.place.read_bytes(), name=f"published {MANIFEST_NAME}")
    except StoreError as error:
        log.warning("the repository's own %s is not used: %s", MANIFEST_NAME, error)
        return manifest
    if theirs.content_digest != manifest.content_digest:
        log.warning(
            "the repository's own %s speaks of other files; its lineage is not used", MANIFEST_NAME
        )
        return manifest
    return replace(manifest, lineage=theirs.lineage, tensors=theirs.tensors)

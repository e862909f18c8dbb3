"""Write a manifest for files that somebody else put into a folder."""

from __future__ import annotations

from pathlib import Path

from hub_tools.errors import BadNameError
from hub_tools.names import parse_repo
from model_store.errors import NotASnapshotError, TargetExistsError
from model_store.manifest import MANIFEST_NAME, Manifest, Source, scan, write_manifest


def adopt_folder(folder: Path, *, source: str | None = None) -> Manifest:
    """Hash a folder's files and write its manifest.

    Args:
        folder: the files; nothing but the manifest is written.
        source: `hub:owner/name@revision`, as the user remembers it. It is recorded as a revision,
            never as a pinned commit: no hub was asked.

    Raises:
        NotASnapshotError: no such folder, or no file of a checkpoint in it.
        TargetExistsError: it has a manifest already.
        StoreError: something in it is no plain file.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise NotASnapshotError(f"{folder} is no folder", hint="Check the path.")
    if (folder / MANIFEST_NAME).exists():
        raise TargetExistsError(
            f"{folder} has a manifest already", hint="Check it: python -m hub_tools.verify FOLDER"
        )
    entries = scan(folder)
    if not entries:
        raise NotASnapshotError(f"{folder} is empty", hint="Check the path.")
    manifest = Manifest(entries, _source(source) if source else None)
    if not manifest.content:
        raise NotASnapshotError(
            f"{folder} holds no weights, config or tokenizer file", hint="Check the path."
        )
    write_manifest(folder, manifest)
    return manifest


def _source(text: str) -> Source:
    name = parse_repo(text)
    if name.hub is None:
        raise BadNameError(f"{text!r} names no hub", hint="Write hub:owner/name@revision.")
    return Source(name.hub, name.repo_id, name.revision or "", commit="")

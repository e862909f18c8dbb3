"""Where a step writes its result when nobody says it."""

from __future__ import annotations

from pathlib import Path

from hub_tools.snapshots import local_target
from model_store.manifest import read_manifest


def result_folder(snapshot: Path, into: str | None, *, suffix: str) -> Path:
    """Return the folder for the result of a step on `snapshot`.

    `into`, a folder or `local:owner/name`; else a local repository named after the hub's one that
    the snapshot descends from; else, for one that came from no hub, a folder beside it.

    Args:
        snapshot: the source's folder.
        into: what the user said.
        suffix: what a default name appends to the source's, for example "Int4".

    Raises:
        NotASnapshotError: the source has no manifest.
    """
    if into is not None:
        return local_target(into) if into.startswith("local:") else Path(into).expanduser()
    origin = read_manifest(snapshot).origin
    if origin is not None:
        return local_target(f"local:{origin.repo_id}-{suffix}")
    place = snapshot.absolute()
    return place.with_name(f"{place.name}-{suffix}")

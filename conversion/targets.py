"""Where a conversion writes to when nobody says it."""

from __future__ import annotations

from pathlib import Path

from conversion.rewriting import known_source
from model_store.errors import UsageError
from model_store.manifest import read_manifest


def target_folder(snapshot: Path, into: str | None, *, suffix: str) -> Path:
    """Return the folder to write to: `into`, or a local repository named after the source.

    Args:
        snapshot: the source's folder.
        into: a folder, or `local:owner/name`; None for the default.
        suffix: what the default appends to the source's name.

    Raises:
        UsageError: no `into`, and no ancestor of the snapshot came from a hub.
        NotASnapshotError: the source is no snapshot.
    """
    from hub_tools.snapshots import local_target

    if into is not None:
        return local_target(into) if into.startswith("local:") else Path(into).expanduser()
    source = known_source(read_manifest(snapshot))
    if source is None:
        raise UsageError(
            f"{snapshot} came from no hub, so the result has no name", hint="Say --into FOLDER."
        )
    return local_target(f"local:{source.repo_id}-{suffix}")

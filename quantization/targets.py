"""Where a quantized snapshot goes when nobody says it."""

from __future__ import annotations

from pathlib import Path

from model_store.manifest import read_manifest
from quantization.options import GptqConfig
from quantization.source import known_source


def target_folder(folder: Path, config: GptqConfig) -> Path:
    """Return the folder to write to.

    `--into`; else a local repository named after the hub's one that the source came from; else,
    for a snapshot that came from no hub, a folder beside it.

    Raises:
        NotASnapshotError: the source has no manifest.
    """
    from hub_tools.snapshots import local_target

    if config.into is not None:
        if config.into.startswith("local:"):
            return local_target(config.into)
        return Path(config.into).expanduser()
    suffix = f"{config.method.upper()}-Int{config.bits}"
    origin = known_source(read_manifest(folder))
    if origin is not None:
        return local_target(f"local:{origin.repo_id}-{suffix}")
    place = folder.absolute()
    return place.with_name(f"{place.name}-{suffix}")

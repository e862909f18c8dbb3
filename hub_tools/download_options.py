"""The options of `hub_tools.download`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.errors import UsageError
from model_store.options import option


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """What to fetch, and where to."""

    name: str = option("repository, such as qwen/Qwen-VL-Chat or huggingface:o/n@v1", flag="")
    revision: str | None = option("branch, tag or commit (default: the hub's)", default=None)
    local_dir: Path | None = option(
        "write a plain copy here, not into the store", default=None, metavar="DIR", recorded=False
    )
    offline: bool = option("ask no hub; use the store", default=False, recorded=False)
    connections: int = option("byte ranges fetched at once", default=8, metavar="N", recorded=False)
    include: tuple[str, ...] = option(
        "only paths that match; may be repeated", default=(), metavar="PATTERN"
    )
    exclude: tuple[str, ...] = option(
        "no path that matches; may be repeated", default=(), metavar="PATTERN"
    )
    verify: bool = option("hash what is here already, mend what is damaged", default=False)
    dry_run: bool = option("say what would be fetched, fetch nothing", default=False)

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 64:
            raise UsageError(f"--connections is {self.connections}, not 1 to 64")
        if self.dry_run and (self.offline or self.local_dir):
            raise UsageError("--dry-run asks a hub, and knows the store only")


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """The options of `hub_tools.adopt`."""

    folder: Path = option("folder with a checkpoint", flag="")
    source: str | None = option(
        "where it came from: hub:owner/name@commit", default=None, metavar="NAME"
    )


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `hub_tools.verify`."""

    snapshot: str = option("snapshot folder, or a name that is in the store", flag="")

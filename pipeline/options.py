"""Options of `ferry run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.options import option


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Which recipe to run, and how."""

    recipe: Path = option("recipe file (TOML)", flag="")
    work: Path | None = option("folder to work in (default: the recipe's)", default=None)
    dry_run: bool = option("say what would run, and run nothing", default=False)
    again: tuple[str, ...] = option(
        "run this step again even if finished; may be given several times",
        default=(),
        metavar="STEP",
    )

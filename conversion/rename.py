"""Rename, split, fuse and transpose a snapshot's tensors by a table of your own.

Examples:
    python -m conversion.rename ./checkpoint --rules rules.toml --into ./renamed
    python -m conversion.rename ./checkpoint --rules rules.toml --dry-run

A table, in TOML; {} stands for a layer index:

    [[rule]]
    source = "transformer.h.{}.attn.c_attn.weight"
    targets = ["layers.{}.q.weight", "layers.{}.k.weight", "layers.{}.v.weight"]
    op = "rows"          # rename (default), rows, columns, transpose

    [[rule]]
    sources = ["h.{}.gate.weight", "h.{}.up.weight"]     # fused
    target = "layers.{}.gate_up.weight"
    op = "rows"

    [[drop]]
    name = "h.{}.attn.masked_bias"
    reason = "a buffer that the model makes itself"

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import RenameOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, RenameOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Rename and print the folder."""
    from conversion.rename_table import draft_rename
    from conversion.running import run_step

    return run_step(args, RenameOptions, draft_rename, suffix="Renamed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

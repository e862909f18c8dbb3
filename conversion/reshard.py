"""Put a snapshot's tensors, under the same names, into weight files of another size or format.

Examples:
    python -m conversion.reshard ./checkpoint --max-shard-size 500MB
    python -m conversion.reshard ./checkpoint --format bin --max-shard-size 2GB --into ./old-style
    python -m conversion.reshard ./checkpoint --max-shard-size 1GB --dry-run

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import ReshardOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ReshardOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Rewrite and print the folder."""
    from conversion.running import run_step
    from conversion.steps import draft_reshard

    return run_step(args, ReshardOptions, draft_reshard, suffix="Resharded")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

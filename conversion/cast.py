"""Cast a snapshot's floats to float32, bfloat16 or float16, rounding to nearest even.

Examples:
    python -m conversion.cast ./checkpoint --to bfloat16
    python -m conversion.cast ./checkpoint --to float16 --exclude "*norm*" --exclude lm_head.weight
    python -m conversion.cast ./checkpoint --to float32 --include "model.vision_tower.*"

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import CastOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, CastOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Cast and print the folder."""
    from conversion.casting import draft_cast
    from conversion.running import run_step

    return run_step(args, CastOptions, draft_cast, suffix=args.to)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

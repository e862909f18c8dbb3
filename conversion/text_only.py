"""Write the language part of a Qwen-VL as a stock Qwen2 checkpoint that any text engine loads.

Examples:
    python -m conversion.text_only local:me/Qwen-VL-Chat-Native
    python -m conversion.text_only qwen/Qwen-VL-Chat --into Qwen-VL-Chat-Text

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import TextOnlyOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, TextOnlyOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.running import run_step
    from conversion.text_part import draft_text_only

    return run_step(args, TextOnlyOptions, draft_text_only, suffix="Text")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Bring a native Qwen-VL snapshot back to the names and files of 2023, byte for byte.

Examples:
    python -m conversion.to_original local:me/Qwen-VL-Chat-Native --into Qwen-VL-Chat
    python -m conversion.to_original Qwen-VL-Chat-Native --into Qwen-VL-Chat --format safetensors

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import ToOriginalOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ToOriginalOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.running import run_step
    from conversion.steps import draft_to_original

    return run_step(args, ToOriginalOptions, draft_to_original, suffix="Original")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Bring Qwen-VL, bf16 or GPTQ, from the layout of 2023 to the native one, without changing a value.

Examples:
    python -m conversion.to_transformers qwen/Qwen-VL-Chat
    python -m conversion.to_transformers Qwen-VL-Chat-Int4 --into Qwen-VL-Chat-Int4-Native
    python -m conversion.to_transformers qwen/Qwen-VL-Chat --bundle

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import ToTransformersOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ToTransformersOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.running import run_step
    from conversion.steps import draft_to_transformers

    return run_step(args, ToTransformersOptions, draft_to_transformers, suffix="Native")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Merge a LoRA adapter, made by PEFT in either layout of names, into its base snapshot.

Examples:
    python -m conversion.merge_lora Qwen-VL-Chat --adapter ./my-adapter
    python -m conversion.merge_lora Qwen-VL-Chat-Native --adapter ./my-adapter --into ./merged

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import MergeLoraOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, MergeLoraOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and print the folder."""
    from conversion.lora_merging import draft_merge_lora
    from conversion.running import run_step

    return run_step(args, MergeLoraOptions, draft_merge_lora, suffix="Merged")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

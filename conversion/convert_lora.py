"""Carry a LoRA adapter of Qwen-VL between the layout of 2023 and the native one.

Examples:
    python -m conversion.convert_lora ./adapter --to native --into ./adapter-native
    python -m conversion.convert_lora ./adapter-native --to original --into ./adapter-2023

Prints the folder of the new adapter. `c_attn` comes apart exactly; q, k and v that were trained
apart become one adapter with their ranks added up, which multiplies out to the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.options import ConvertLoraOptions
from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ConvertLoraOptions)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.lora_conversion import convert_lora

    result = convert_lora(from_args(ConvertLoraOptions, args))
    if not result.fresh:
        progress_for(args).log(f"already done: {result.folder}")
    emit(args, result.json(), str(result.folder))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

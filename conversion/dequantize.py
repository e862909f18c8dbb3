"""Turn GPTQ weights back into plain ones, in any layout; other tensors are cast along.

Examples:
    python -m conversion.dequantize Qwen-VL-Chat-Int4 --to bfloat16
    python -m conversion.dequantize Qwen-VL-Chat-Int4-Native --to float16 --into ./plain

Prints the folder of the new snapshot; when it is there already, nothing is written. A run that was
killed goes on from the weight files that it had finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.dry_run import add_dry_run
from conversion.options import DequantizeOptions
from model_store.command import run_command
from model_store.options import add_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, DequantizeOptions)
    add_dry_run(parser)


def run(args: argparse.Namespace) -> int:
    """Dequantize and print the folder."""
    from conversion.dequantizing import draft_dequantize
    from conversion.running import run_step

    return run_step(args, DequantizeOptions, draft_dequantize, suffix="Dequantized")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

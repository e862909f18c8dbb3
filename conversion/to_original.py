"""Bring a native Qwen-VL snapshot back to the names and files of 2023, byte for byte.

Examples:
    python -m conversion.to_original local:me/Qwen-VL-Chat-Native --into Qwen-VL-Chat
    python -m conversion.to_original Qwen-VL-Chat-Native --into Qwen-VL-Chat --format safetensors

Prints the folder of the new snapshot; when it is there already, nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.options import ToOriginalOptions
from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ToOriginalOptions)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.steps import to_original
    from hub_tools.snapshots import resolve_snapshot
    from hub_tools.targets import result_folder

    options = from_args(ToOriginalOptions, args)
    folder = resolve_snapshot(options.snapshot)
    target = result_folder(folder, options.into, suffix="Original")
    progress = progress_for(args)
    result = to_original(folder, target, options, progress=progress)
    if not result.fresh:
        progress.log(f"already done: {result.folder}")
    emit(args, result.json(), str(result.folder))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

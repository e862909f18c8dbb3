"""Bring Qwen-VL, bf16 or GPTQ, from the layout of 2023 to the native one, without changing a value.

Examples:
    python -m conversion.to_transformers qwen/Qwen-VL-Chat
    python -m conversion.to_transformers Qwen-VL-Chat-Int4 --into Qwen-VL-Chat-Int4-Native

Prints the folder of the new snapshot; when it is there already, nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.options import ToTransformersOptions
from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ToTransformersOptions)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.steps import to_transformers
    from hub_tools.snapshots import resolve_snapshot
    from hub_tools.targets import result_folder

    options = from_args(ToTransformersOptions, args)
    folder = resolve_snapshot(options.snapshot)
    target = result_folder(folder, options.into, suffix="Native")
    progress = progress_for(args)
    result = to_transformers(folder, target, options, progress=progress)
    if not result.fresh:
        progress.log(f"already done: {result.folder}")
    emit(args, result.json(), str(result.folder))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Put a snapshot's tensors, under the same names, into safetensors files; no pickle is run.

Examples:
    python -m conversion.to_safetensors qwen/Qwen-VL-Chat
    python -m conversion.to_safetensors ./checkpoint --into ./safe --max-shard-size 2GB

Prints the folder of the new snapshot; when it is there already, nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from conversion.options import ToSafetensorsOptions
from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ToSafetensorsOptions)


def run(args: argparse.Namespace) -> int:
    """Convert and print the folder."""
    from conversion.steps import to_safetensors
    from hub_tools.snapshots import resolve_snapshot
    from hub_tools.targets import result_folder

    options = from_args(ToSafetensorsOptions, args)
    folder = resolve_snapshot(options.snapshot)
    target = result_folder(folder, options.into, suffix="Safetensors")
    progress = progress_for(args)
    result = to_safetensors(folder, target, options, progress=progress)
    if not result.fresh:
        progress.log(f"already done: {result.folder}")
    emit(args, result.json(), str(result.folder))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

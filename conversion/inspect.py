"""List a checkpoint's tensors: names, shapes, dtypes, bytes, and parameters by part.

Examples:
    python -m conversion.inspect ./checkpoint
    python -m conversion.inspect model.safetensors --json
    python -m conversion.inspect pytorch_model.bin --values

A folder, an index or one weight file; no manifest is needed, and no pickle is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_store.command import emit, progress_for, run_command
from model_store.progress import NoProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="folder, index or weight file")
    parser.add_argument(
        "--values", action="store_true", help="read all data: checksums, NaN and infinity"
    )


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from conversion.inspecting import inspect_checkpoint

    progress = progress_for(args) if args.values else NoProgress()
    found = inspect_checkpoint(args.checkpoint, values=args.values, progress=progress)
    emit(args, found.json(), found.text())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Say whether two checkpoints hold the same tensors, bit by bit, whatever their files and layout.

Examples:
    python -m conversion.diff Qwen-VL-Chat Qwen-VL-Chat-Native
    python -m conversion.diff A B --json
    python -m conversion.diff A B --rules table.toml

Exit status 0: identical; 1: different.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.progress import Progress

if TYPE_CHECKING:
    from conversion.comparing import Report


def diff_checkpoints(
    a: Path | str,
    b: Path | str,
    *,
    rules: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare reference `a` with candidate `b`; see `conversion.comparing.diff_checkpoints`.

    Raises:
        CheckpointError: weights that cannot be read.
        StoreError: a config.json that cannot be read.
    """
    from conversion.comparing import diff_checkpoints as compare  # numpy loads here, not for --help

    return compare(a, b, rules=rules, progress=progress)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("reference", type=Path, metavar="A", help="folder or weight file")
    parser.add_argument("candidate", type=Path, metavar="B", help="folder or weight file")
    parser.add_argument(
        "--rules", type=Path, help="table of conversion.rename that leads from A's names to B's"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    report = diff_checkpoints(
        args.reference, args.candidate, rules=args.rules, progress=progress_for(args)
    )
    emit(args, report.json(), report.text())
    return ExitCode.DONE if report.identical else ExitCode.GATE_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

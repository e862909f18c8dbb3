"""Declare a parity report good: later ones are held against it until another one is blessed.

Writes the report's measurements, who blessed them and why, into one small file to be committed.
Nothing is ever blessed by itself, so quality cannot drift away in steps too small to see.

Examples:
    python -m verification.bless parity-report-quantized --note "first release"
    python -m verification.compare A A-Int4 --claim quantized --baseline parity-baseline.json
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from model_store.command import ExitCode, emit, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("report", type=Path, help="report folder, or its parity.json")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("parity-baseline.json"),
        metavar="FILE",
        help="where to write it (default: parity-baseline.json)",
    )
    parser.add_argument("--by", help="who blesses it (default: your user name)")
    parser.add_argument("--note", default="", help="why, in a sentence")
    parser.add_argument(
        "--accept-failure",
        action="store_true",
        help="bless a report that failed or has no verdict",
    )


def run(args: argparse.Namespace) -> int:
    """Bless and print the file."""
    from verification.baseline import bless  # numpy loads here, not for --help

    by = args.by or getpass.getuser()
    bless(args.report, args.into, by=by, note=args.note, accept_failure=args.accept_failure)
    emit(args, {"path": str(args.into), "by": by}, str(args.into))
    return ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

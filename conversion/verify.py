"""Prove that a converted snapshot is, byte by byte, what its step makes of its source.

Examples:
    python -m conversion.verify Qwen-VL-Chat-Native --source Qwen-VL-Chat
    python -m conversion.verify ./merged --source ./base --adapter ./adapter

The step of the lineage is planned again from the source, and every tensor and every file that it
would write is compared with what is there; both sides' files are hashed. Exit status 0: proved;
1: not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_store.command import ExitCode, emit, progress_for, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("converted", help="snapshot folder or repo name of the result")
    parser.add_argument(
        "--source", required=True, help="snapshot folder or repo name that it was made of"
    )
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument("--rules", type=Path, help="the table of rules, after conversion.rename")
    inputs.add_argument(
        "--adapter", type=Path, help="folder of the adapter, after conversion.merge_lora"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from conversion.verifying import verify_conversion
    from hub_tools.snapshots import resolve_snapshot

    proof = verify_conversion(
        resolve_snapshot(args.converted),
        resolve_snapshot(args.source),
        inputs=args.rules or args.adapter,
        progress=progress_for(args),
    )
    emit(args, proof.json(), proof.text())
    return ExitCode.DONE if proof.holds else ExitCode.GATE_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

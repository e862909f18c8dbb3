"""--dry-run: no option of a step, for a recipe has no use for it."""

from __future__ import annotations

import argparse


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add the flag; `run_step` heeds it."""
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")

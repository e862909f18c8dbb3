"""Check that a snapshot's card is complete and says what its manifest and records say.

Examples:
  python -m model_cards.lint build/demo/int4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_store.command import ExitCode, emit, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("snapshot", type=Path, help="snapshot folder with a card")


def run(args: argparse.Namespace) -> int:
    from model_cards.linting import lint_card

    problems = lint_card(args.snapshot)
    emit(args, {"problems": problems}, "\n".join(problems) or "card is fit to be published")
    return ExitCode.GATE_FAILED if problems else ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

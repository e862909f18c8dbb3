"""Write README.md, configuration.json, LICENSE and NOTICE from a snapshot's manifest and records.

Examples:
  python -m model_cards.generate build/demo/int4
  python -m model_cards.generate build/demo/int4 --title "Qwen-VL-Chat-Int4"
  python -m model_cards.generate my-checkpoint --licence apache-2.0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from model_cards.options import CardOptions
from model_store.command import emit, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, CardOptions)


def run(args: argparse.Namespace) -> int:
    from model_cards.writing import write_card

    options = from_args(CardOptions, args)
    card = write_card(options)
    emit(args, {"path": str(options.snapshot), "card": str(card)}, str(card))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""ferry: carry model checkpoints between hubs, and prove that nothing was lost on the way.

Examples:
  ferry download qwen/Qwen-VL-Chat --revision v1.0.0
  ferry to-transformers qwen/Qwen-VL-Chat
  ferry run recipes/demo.toml
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from model_store.command import build_parser, guarded
from model_store.manifest import tool_version
from pipeline.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; only its module is imported."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[words[0]])
        parser = build_parser(module.add_arguments, prog=f"ferry {words[0]}", about=module.__doc__)
        return guarded(module.run, parser.parse_args(words[1:]))
    _overview().parse_args(words or ["--help"])
    return 0


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ferry", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=tool_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for name, module in COMMANDS.items():
        commands.add_parser(name, help=first_sentence(importlib.import_module(module)))
    return parser


def first_sentence(module: ModuleType) -> str:
    """The first line of a command's docstring: its one line in the overview."""
    return (module.__doc__ or "").partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())

r"""Talk to a Qwen-VL-Chat model in the terminal, about pictures, in Chinese or English.

Examples:
    python -m qwen_vl.chat Qwen-VL-Chat
    python -m qwen_vl.chat Qwen-VL-Chat --device cuda --dtype bfloat16 --allow-http
    printf '/image demo.jpeg\nWhat is this?\n/box\n' | python -m qwen_vl.chat Qwen-VL-Chat

Type /help for what a line can say besides a question.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from model_store.command import run_command
from model_store.options import add_options, from_args
from qwen_vl.chat_options import ChatOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, ChatOptions)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    from qwen_vl.terminal import Screen, talk
    from qwen_vl.terminal_model import open_session

    options = from_args(ChatOptions, args)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # questions and answers may be Chinese anywhere
            stream.reconfigure(encoding="utf-8", errors="replace")
    screen = Screen(sys.stdin, sys.stdout, json=args.json, quiet=args.quiet)
    talk(open_session(options), screen)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

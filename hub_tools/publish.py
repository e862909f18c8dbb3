"""Publish a verified snapshot to ModelScope, Hugging Face, or both, one commit each.

Refused before anything is sent: a tampered snapshot, one without a green parity record, without
card or licence, with tokens or paths of this machine in its files. New repositories are private
unless --public is said. The same bytes again make no commit, and what a hub has is not sent again.

Examples:
  python -m hub_tools.publish ./Qwen-VL-Chat-Int4 --to modelscope:me/Qwen-VL-Chat-Int4
  python -m hub_tools.publish ./out --to modelscope:me/x --to huggingface:me/x --revision-tag v1.0.0
  python -m hub_tools.publish ./out --to huggingface:me/x --public --dry-run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hub_tools.publish_options import PublishOptions
from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.options import add_options, from_args
from model_store.progress import human_bytes

if TYPE_CHECKING:
    from hub_tools.publishing import Published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, PublishOptions)
    parser.add_argument(
        "--public", dest="private", action="store_false", help="the same as --no-private"
    )


def run(args: argparse.Namespace) -> int:
    from hub_tools.hubs import Surroundings
    from hub_tools.publishing import publish

    options = from_args(PublishOptions, args)
    done = publish(options, Surroundings(progress=progress_for(args)))
    result = {"path": str(options.snapshot), "published": [item.json() for item in done]}
    emit(args, result, "\n".join(_line(item) for item in done))
    return ExitCode.DONE


def _line(item: Published) -> str:
    place = f"{item.hub}:{item.repo_id}" + (f"@{item.tag}" if item.tag else "")
    kind = "private" if item.private else "public"
    sent = f"{item.files_sent} of {item.files} files"
    if item.dry_run:
        there = "a new repository" if item.created else "one that is there"
        most = human_bytes(item.bytes_sent)
        return f"{place}: would send {sent}, at most {most}, to {there}, {kind}"
    return f"{place}: commit {item.commit}, {sent} sent, {human_bytes(item.bytes_sent)}, {kind}"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

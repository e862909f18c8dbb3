"""Hash every file of a snapshot and compare with its manifest.

Examples:
  python -m hub_tools.verify ./Qwen-VL-Chat
  python -m hub_tools.verify huggingface:Qwen/Qwen-VL-Chat --json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hub_tools.download_options import VerifyOptions
from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, VerifyOptions)


def run(args: argparse.Namespace) -> int:
    from hub_tools.snapshots import resolve_snapshot
    from model_store.manifest import verify_snapshot

    options = from_args(VerifyOptions, args)
    progress = progress_for(args)
    folder = resolve_snapshot(options.snapshot, offline=True, progress=progress)
    manifest = verify_snapshot(folder, progress=progress)
    result = {
        "path": str(folder),
        "files": len(manifest.files),
        "content_digest": manifest.content_digest,
    }
    emit(args, result, f"{folder}: all {len(manifest.files)} files are as the manifest says")
    return ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

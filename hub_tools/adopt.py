"""Make a plain folder a snapshot: hash its files and write ferry.manifest.json into it.

Examples:
  python -m hub_tools.adopt ./Qwen-VL-Chat
  python -m hub_tools.adopt ./Qwen-VL-Chat --source modelscope:qwen/Qwen-VL-Chat@v1.1.0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hub_tools.download_options import AdoptOptions
from model_store.command import ExitCode, emit, run_command
from model_store.options import add_options, from_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, AdoptOptions)


def run(args: argparse.Namespace) -> int:
    from hub_tools.adopting import adopt_folder

    options = from_args(AdoptOptions, args)
    manifest = adopt_folder(options.folder, source=options.source)
    result = {
        "path": str(options.folder),
        "files": len(manifest.files),
        "content_digest": manifest.content_digest,
    }
    emit(args, result, f"{options.folder}: {len(manifest.files)} files, {manifest.content_digest}")
    return ExitCode.DONE


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

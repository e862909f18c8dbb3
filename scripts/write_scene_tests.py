"""Write the drawn test split as evaluation files, in the formats of the scripts of 2023.

Examples:
  python scripts/write_scene_tests.py build/scene-tests
  python scripts/write_scene_tests.py build/scene-tests-zh --language zh --count 100 --portable
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model_store.command import emit, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("folder", type=Path, help="the folder to write; absent or empty")
    parser.add_argument("--count", type=int, default=200, help="questions a file")
    parser.add_argument("--seed", type=int, default=7, help="of the test split")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    parser.add_argument(
        "--portable",
        action="store_true",
        help="print in Pillow's bitmap font only: the same files on every machine",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from model_store.errors import UsageError
    from model_store.snapshot_folder import check_target
    from qwen_vl.scene_drawing import Style
    from qwen_vl.scene_files import write_test_files
    from qwen_vl.scene_fonts import trained_faces
    from qwen_vl.scenes import PORTABLE

    if args.count < 1:
        raise UsageError(f"--count is {args.count}; a file needs a question")
    check_target(args.folder, replace=False)
    style = PORTABLE if args.portable else Style(faces=trained_faces())
    made = write_test_files(
        args.folder, seed=args.seed, count=args.count, language=args.language, style=style
    )
    emit(args, made, str(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

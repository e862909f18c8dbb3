"""Put a checkpoint folder of this repository into a local hub, after checking every byte of it.

Examples:
  python scripts/place_checkpoint.py checkpoints/Qwen-VL-Tiny-Chat build/hub/ferry/Tiny@v1.0.0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model_store.command import emit, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("checkpoint", type=Path, help="a folder with a manifest")
    parser.add_argument("into", type=Path, help="the repository's folder; absent or empty")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from model_store.files import copy_file
    from model_store.manifest import MANIFEST_NAME, verify_snapshot
    from model_store.paths import inside
    from model_store.snapshot_folder import new_snapshot

    manifest = verify_snapshot(args.checkpoint)
    with new_snapshot(args.into) as building:
        for path in (*(entry.path for entry in manifest.files), MANIFEST_NAME):
            target = inside(building, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(args.checkpoint / path, target)
    emit(args, {"path": str(args.into), "files": len(manifest.files)}, str(args.into))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

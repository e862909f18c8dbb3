"""Train the tiny Qwen-VL-Chat from scratch on drawn scenes, in two stages.

The vision side learns first and alone; then the language model, with the vision side frozen. A
third stage goes on with the language model of a finished checkpoint, with more of the questions
that are hard to learn; a fourth lets the vision side follow, at a rate too low to lose what it
knows. Stages write a state and a log into the folder, and go on from them when run again.

Examples:
  python scripts/train_tiny.py build/tiny-training vision --steps 800
  python scripts/train_tiny.py build/tiny-training language --steps 2000 --minutes 45
  python scripts/train_tiny.py build/further further --start checkpoints/Qwen-VL-Tiny-Chat
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from model_store.command import emit, run_command
from model_store.errors import UsageError
from model_store.files import copy_file, write_bytes, write_text

DEFAULT_SEED = 2023


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("folder", type=Path, help="where checkpoints and logs are kept")
    parser.add_argument("stage", choices=("vision", "language", "further", "joint"))
    parser.add_argument(
        "--start", type=Path, help="the checkpoint that `further` and `joint` go on from"
    )
    parser.add_argument("--steps", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=60.0,
        help="end the schedule after so many minutes at the latest (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=16, help="pictures with questions, a step of the later stages"
    )
    parser.add_argument(
        "--muon", type=float, default=0.004, help="Muon's rate in the language stage"
    )
    parser.add_argument(
        "--vision", type=float, default=0.0005, help="Muon's rate for the vision side in `joint`"
    )
    parser.add_argument("--machine", default=f"{os.cpu_count()} CPUs", help="for the record")


def _note_run(args: argparse.Namespace) -> None:
    """Add this run to the folder's `runs.json`, which the shipped record is made from."""
    path = args.folder / "runs.json"
    runs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": []}
    command = f"python scripts/train_tiny.py FOLDER {args.stage} --steps {args.steps}"
    command += f" --minutes {args.minutes:g} --seed {args.seed} --threads {args.threads}"
    if args.stage != "vision":
        command += f" --rows {args.rows} --muon {args.muon:g}"
    command += " --start CHECKPOINT" if args.start else ""
    command += f" --vision {args.vision:g}" if args.stage == "joint" else ""
    runs["runs"].append({"stage": args.stage, "command": command})
    runs |= {"seed": args.seed, "machine": args.machine}
    write_text(path, json.dumps(runs, indent=1) + "\n")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from qwen_vl.ranks import read_ranks
    from scripts.tiny_language import Language
    from scripts.tiny_model import fresh_model
    from scripts.tiny_rows import FURTHER, LanguageBatches
    from scripts.tiny_running import Plan, Run
    from scripts.tiny_vocabulary import tiny_rank_file
    from scripts.tiny_warmup import Warmup, WarmupBatches, load_vision, loaded

    if (args.stage in ("further", "joint")) != (args.start is not None):
        raise UsageError("`further` and `joint`, and only they, need --start CHECKPOINT")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.start:
        _take_over(args.start, args.folder)
    _note_run(args)
    rank_path = args.folder / "qwen.tiktoken"
    if not rank_path.is_file():
        write_bytes(rank_path, tiny_rank_file())
    ranks = read_ranks(rank_path)
    model = fresh_model(len(ranks))
    plan = Plan(steps=args.steps, minutes=args.minutes)
    if args.stage == "vision":
        training = Run(args.folder, "vision", Warmup(model), plan)
        training.go(loaded(WarmupBatches(args.seed, args.steps), training.step))
    else:
        if args.start:
            _load_weights(model, args.start)
        else:
            load_vision(model, args.folder / "vision.pt")
        follows = args.vision if args.stage == "joint" else 0.0
        stage = Language(model, muon=args.muon, vision=follows)
        training = Run(args.folder, args.stage, stage, plan)
        batches = LanguageBatches(
            ranks, args.seed, args.steps, rows=args.rows, shares=FURTHER if args.start else None
        )
        training.go(loaded(batches, training.step))
    emit(args, {"steps": training.step, "seconds": training.seconds}, f"{training.step} steps")
    return 0


def _take_over(start: Path, folder: Path) -> None:
    """Keep what the card will say of the stages before: the checkpoint's ranks and record."""
    for name, kept in (("qwen.tiktoken", "qwen.tiktoken"), ("training.json", "earlier.json")):
        if not (folder / kept).is_file():
            copy_file(start / name, folder / kept)


def _load_weights(model: Any, start: Path) -> None:
    from qwen_vl.loading import load_model

    model.load_state_dict(load_model(start, dtype="float32").state_dict())


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

"""Train the tiny Qwen-VL-Chat from scratch on drawn scenes, in stages.

The vision side learns first and alone; then the language model, with the vision side frozen. A
finished checkpoint can go on: its vision side alone again; `further`, its language model with more
of the questions that are hard to learn; and `joint`, where the vision side follows at a rate too
low to lose what it knows. Stages write a state and a log into the folder, and go on from them when
run again.

Examples:
  python scripts/train_tiny.py build/tiny-training vision --steps 800
  python scripts/train_tiny.py build/tiny-training language --steps 2000 --minutes 45
  python scripts/train_tiny.py build/further vision --start checkpoints/Qwen-VL-Tiny-Chat
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
        "--start", type=Path,
        help="the checkpoint to go on from: `further` and `joint` need one, `vision` may have one",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=60.0,
        help="end the schedule after so many minutes at the latest (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--rows", type=int,
        help="pictures a step (default: 48 in the vision stage, 16 with questions in later ones)",
    )  # fmt: skip
    parser.add_argument(
        "--muon", type=float,
        help="Muon's rate (default: 0.02 in the vision stage, 0.004 in the later ones)",
    )  # fmt: skip
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
    command += f" --rows {args.rows}" if args.rows else ""
    command += f" --muon {args.muon:g}" if args.muon else ""
    command += " --start CHECKPOINT" if args.start else ""
    command += f" --vision {args.vision:g}" if args.stage == "joint" else ""
    runs["runs"].append({"stage": args.stage, "command": command})
    runs |= {"seed": args.seed, "machine": args.machine}
    write_text(path, json.dumps(runs, indent=1) + "\n")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    from qwen_vl.ranks import read_ranks
    from scripts.tiny_model import fresh_model
    from scripts.tiny_running import Plan, Run
    from scripts.tiny_vocabulary import tiny_rank_file
    from scripts.tiny_warmup import loaded

    if args.stage in ("further", "joint") and args.start is None:
        raise UsageError(f"`{args.stage}` goes on from a checkpoint: name it with --start")
    if args.start is not None and not (args.start / "training.json").is_file():
        raise UsageError(f"{args.start} is no checkpoint of scripts/ship_tiny.py")
    if args.stage == "language" and args.start is not None:
        raise UsageError("`language` starts afresh: use `further` to go on from a checkpoint")
    if args.stage == "language" and not (args.folder / "vision.pt").is_file():
        raise UsageError(f"{args.folder} has no vision side: run the stage `vision` there first")
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
    if args.start:
        _load_weights(model, args.start)
    make = _vision if args.stage == "vision" else _language
    stage, batches = make(args, model, ranks)
    training = Run(args.folder, args.stage, stage, Plan(steps=args.steps, minutes=args.minutes))
    training.go(loaded(batches, training.step))
    emit(args, {"steps": training.step, "seconds": training.seconds}, f"{training.step} steps")
    return 0


def _vision(args: argparse.Namespace, model: Any, _: dict[bytes, int]) -> tuple[Any, Any]:
    """The vision stage and its pictures."""
    from scripts.tiny_warmup import MUON, PICTURES, Warmup, WarmupBatches

    batches = WarmupBatches(args.seed, args.steps, pictures=args.rows or PICTURES)
    return Warmup(model, muon=args.muon or MUON), batches


def _language(args: argparse.Namespace, model: Any, ranks: dict[bytes, int]) -> tuple[Any, Any]:
    """A later stage and its rows; the vision side is what the folder's own vision stage left."""
    from scripts.tiny_language import MUON, Language
    from scripts.tiny_rows import FURTHER, ROWS, LanguageBatches
    from scripts.tiny_warmup import load_vision

    seen = args.folder / "vision.pt"
    if args.start is None or seen.is_file():
        load_vision(model, seen)
    shares = FURTHER if args.start else None
    batches = LanguageBatches(ranks, args.seed, args.steps, rows=args.rows or ROWS, shares=shares)
    follows = args.vision if args.stage == "joint" else 0.0
    return Language(model, muon=args.muon or MUON, vision=follows), batches


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

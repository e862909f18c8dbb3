"""Measure what the tiny model sees: the test split, through the public chat path.

Every kind of question in English and Chinese apart, with 95 % intervals; a control with shuffled
pictures; counting where things are alike; and reading in fonts that no training scene used. On a
CPU without bf16 units, bfloat16 multiplies as those would: in float32 sums that are rounded once.

Examples:
  python scripts/evaluate_tiny.py checkpoints/Qwen-VL-Tiny-Chat --output build/evaluation.json
  python scripts/evaluate_tiny.py build/tiny --count 20 --kinds colour counting
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from model_store.command import emit, run_command
from model_store.files import write_text

DEFAULT_SEED = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("checkpoint", type=Path, help="a folder, original or native layout")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--count", type=int, default=200, help="questions a kind and language")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of question")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="to compute in; the weights are bf16 either way",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch
    import transformers

    from model_store.manifest import read_manifest, tool_version
    from qwen_vl.scene_fonts import unseen_faces
    from scripts.tiny_bf16 import has_bf16_units
    from scripts.tiny_judging import KINDS, Task, fonts_of, judge_task, judging_style, load_subject

    style = judging_style()
    known = args.kinds or KINDS
    tasks = [Task(kind, args.count, args.seed) for kind in known]
    if "counting" in known:
        tasks.insert(
            known.index("counting") + 1, Task("counting", args.count, args.seed, alike=True)
        )
    if unseen_faces() and "reading" in known:
        tasks.append(Task("reading", args.count, args.seed, unseen=True))
    told: dict[str, Any] = {}
    unseen: dict[str, Any] = {}
    spawn = multiprocessing.get_context("spawn")  # a forked torch may wait for ever
    with ProcessPoolExecutor(
        args.jobs, spawn, initializer=load_subject, initargs=(args.checkpoint, args.dtype)
    ) as pool:
        for task, facts in zip(tasks, pool.map(judge_task, tasks), strict=True):
            print(_line(task, facts), file=sys.stderr, flush=True)
            if task.unseen:
                unseen = facts | {"fonts": fonts_of(judging_style(unseen_faces()))["faces"]}
            else:
                told[task.name] = facts
    result = {
        "subject": read_manifest(args.checkpoint).content_digest,
        "command": f"python scripts/evaluate_tiny.py CHECKPOINT --count {args.count} "
        f"--seed {args.seed} --dtype {args.dtype}",
        "split": "test",
        "bf16_units": has_bf16_units(),
        "kinds": told,
        "unseen_fonts": unseen,
        "fonts": fonts_of(style),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "modelferry": tool_version(),
            "python": platform.python_version(),
        },
    }
    if args.output:
        write_text(args.output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    emit(args, result, str(args.output or "done"))
    return 0


def _line(task: Any, told: dict[str, Any]) -> str:
    parts = []
    for language, facts in told.items():
        low, high = facts["interval"]
        part = f"{language} {facts['right']:.3f} [{low:.3f}, {high:.3f}]"
        if "mean_iou" in facts:
            part += f" IoU {facts['mean_iou']:.3f}"
        if "shuffled" in facts:
            part += f" shuffled {facts['shuffled']['right']:.2f}"
        parts.append(part)
    return f"{task.name:22} {' | '.join(parts)}"


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

"""Measure what the tiny model sees: the test split, through the public chat path.

Every kind of question in English and Chinese apart, with 95 % intervals; a control with shuffled
pictures; and reading in fonts that no training scene used.

Examples:
  python scripts/evaluate_tiny.py checkpoints/Qwen-VL-Tiny-Chat --output build/evaluation.json
  python scripts/evaluate_tiny.py build/tiny --count 20 --kinds colour counting
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
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
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch
    import transformers

    from model_store.manifest import read_manifest, tool_version
    from qwen_vl.loading import load_model, load_tokenizer
    from qwen_vl.scene_fonts import unseen_faces
    from scripts.tiny_judging import KINDS, evaluate_kind, fonts_of, judging_style

    torch.set_num_threads(args.threads)
    model = load_model(args.checkpoint, dtype=args.dtype)
    tokenizer = load_tokenizer(args.checkpoint)
    style = judging_style()
    told: dict[str, Any] = {}
    for kind in args.kinds or KINDS:
        told[kind] = evaluate_kind(
            model, tokenizer, kind, count=args.count, seed=args.seed, style=style
        )
        print(_line(kind, told[kind]), file=sys.stderr, flush=True)
    unseen: dict[str, Any] = {}
    if unseen_faces() and (not args.kinds or "reading" in args.kinds):
        other = judging_style(unseen_faces())
        unseen = evaluate_kind(
            model, tokenizer, "reading", count=args.count, seed=args.seed, style=other
        )
        print(_line("unseen fonts", unseen), file=sys.stderr, flush=True)
        unseen["fonts"] = fonts_of(other)["faces"]
    result = {
        "subject": read_manifest(args.checkpoint).content_digest,
        "command": f"python scripts/evaluate_tiny.py CHECKPOINT --count {args.count} "
        f"--seed {args.seed} --dtype {args.dtype}",
        "split": "test",
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


def _line(kind: str, told: dict[str, Any]) -> str:
    parts = []
    for language, facts in told.items():
        low, high = facts["interval"]
        part = f"{language} {facts['right']:.3f} [{low:.3f}, {high:.3f}]"
        if "mean_iou" in facts:
            part += f" IoU {facts['mean_iou']:.3f}"
        parts.append(f"{part} shuffled {facts['shuffled']['right']:.2f}")
    return f"{kind:12} {' | '.join(parts)}"


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

"""Make the shipped checkpoint from a training folder: weights, card, licence, curves, manifest.

What the stages before the last one did is taken from the record of the checkpoint it went on from.

Examples:
  python scripts/ship_tiny.py build/tiny-training build/tiny
  python scripts/ship_tiny.py build/tiny-training build/tiny --replace --evaluation figures.json
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

_LANGUAGE = ("colour", "shape", "relation", "counting", "reading", "choice", "chart",
             "comparison", "presence", "caption", "glyphs", "unknown")  # fmt: skip
_SHOWN = {
    "vision": ("colour", "shape", "joint", "character", "index", "hundreds", "tens"),
    "language": _LANGUAGE,
    "further": (*_LANGUAGE[2:], "grounding"),
    "joint": (*_LANGUAGE[2:], "grounding"),
}
_MOST_POINTS = 40  # of a curve, in training.json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("training", type=Path, help="folder of scripts/train_tiny.py")
    parser.add_argument("into", type=Path, help="the checkpoint's folder")
    parser.add_argument("--evaluation", type=Path, help="figures of scripts/evaluate_tiny.py")
    parser.add_argument("--replace", action="store_true", help="replace an older checkpoint")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from PIL import Image

    from scripts.tiny_curves import curves
    from scripts.tiny_export import export, trained_model
    from scripts.tiny_model import IMAGE_TOKENS

    rank_file = (args.training / "qwen.tiktoken").read_bytes()
    model = trained_model(args.training, rank_file)
    training = training_record(args.training)
    logs = {stage: facts["curve"] for stage, facts in training["stages"].items()}
    texts = {"training.json": json.dumps(training, indent=1, ensure_ascii=False) + "\n"}
    manifest = export(model, rank_file, args.into, texts=texts, replace=args.replace)
    few_inks = curves(logs, _SHOWN).quantize(64, dither=Image.Dither.NONE)
    few_inks.save(args.into / "curves.png", optimize=True)
    evaluation = json.loads(args.evaluation.read_text()) if args.evaluation else None
    if evaluation:
        write_text(args.into / "evaluation.json", _pretty(evaluation))
    about = {
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "tokens": IMAGE_TOKENS,
        "digest": manifest.content_digest,
    }
    _write_card(args.into, about, training, evaluation)
    size = sum(path.stat().st_size for path in args.into.iterdir())
    emit(args, {"path": str(args.into), "bytes": size}, f"{args.into}: {size} bytes")
    return 0


def _write_card(
    folder: Path, about: dict[str, Any], training: dict[str, Any], evaluation: Any
) -> None:
    from model_cards.facts import read_facts
    from model_cards.front_matter import configuration, front_matter, render
    from model_cards.licences import APACHE, write_licence_files
    from model_cards.linting import check_card
    from model_store.manifest import refresh_manifest
    from scripts.tiny_card import card_body

    if evaluation and evaluation["subject"] != about["digest"]:
        raise SystemExit("the evaluation is of another checkpoint: run it again on this one")
    facts = read_facts(folder)
    write_licence_files(folder, APACHE, derived_from=None)
    write_text(folder / "configuration.json", _pretty(configuration(facts)))
    body = card_body(about, training, evaluation)
    write_text(folder / "README.md", render(front_matter(facts, APACHE)) + "\n" + body)
    refresh_manifest(folder)
    check_card(folder)


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_record(folder: Path) -> dict[str, Any]:
    """What `training.json` says: every stage, those of the checkpoint it went on from first."""
    import torch

    from qwen_vl.scene_fonts import chinese_faces, record, trained_faces

    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    earlier = folder / "earlier.json"
    stages = json.loads(earlier.read_text(encoding="utf-8"))["stages"] if earlier.is_file() else {}
    for stage in _SHOWN:
        if (folder / f"{stage}.jsonl").is_file():
            again = 1 + sum(name.split()[0] == stage for name in stages)
            name = stage if again == 1 else f"{stage} {again}"
            stages[name] = _stage(stage, _log(folder / f"{stage}.jsonl"), runs["runs"])
    return {
        "seed": runs["seed"],
        "machine": runs["machine"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fonts": {"faces": record(trained_faces()), "glyph_faces": record(chinese_faces())},
        "stages": stages,
    }


def _stage(stage: str, log: list[dict[str, Any]], runs: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "steps": log[-1]["step"],
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "command": "; ".join(run["command"] for run in runs if run["stage"] == stage),
        "curve": log[:: max(1, len(log) // _MOST_POINTS)],
    }


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

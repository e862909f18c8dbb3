"""Measure what batching brings to the parity gate: samples a second, one at a time and together.

Examples:
    python benchmarks/parity.py
    python benchmarks/parity.py --model build/demo/native --runs 5 --write

One pass over the same probes: prompts and pictures prepared, greedy answers, forced answers, boxes,
scores over the whole vocabulary; everything that a side of the gate does but loading. The batch
sizes take turns; ratios are of runs that stand next to each other. One thread, as the gate itself
uses for a small model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "parity.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything, print the table and perhaps keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="snapshot folder (default: a seeded tiny one)")
    parser.add_argument("--samples", type=int, default=96, help="probes (default: 96)")
    parser.add_argument("--new-tokens", type=int, default=48, help="as in the default profile")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--runs", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    with _model(args.model) as folder:
        rows = _measure(folder, args)
    report = {"rows": rows, "settings": _settings(args), "machine": _machine()}
    _print(report)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


@contextmanager
def _model(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tiny"
        for command in (
            [sys.executable, "scripts/make_tiny_checkpoint.py", str(folder)],
            [sys.executable, "-m", "hub_tools.adopt", str(folder)],
        ):
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        yield folder


def _measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    from verification.answers import Speaker
    from verification.folders import read_subject
    from verification.heads import StoredHead
    from verification.probes import make_probes

    speaker, probes = Speaker(folder), make_probes(0, args.samples)
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in args.batches}
    with StoredHead(read_subject(folder, named=folder.name)) as head:
        _pass(speaker, head, probes[:8], 4, args.new_tokens)  # warm up
        for _ in range(args.runs):
            for size in args.batches:
                runs[size].append(_pass(speaker, head, probes, size, args.new_tokens))
    alone = runs[args.batches[0]]
    return [
        {
            "batch": size,
            "samples_per_s": statistics.median(len(probes) / run["wall_s"] for run in found),
            "samples_per_cpu_s": statistics.median(len(probes) / run["cpu_s"] for run in found),
            "times_alone": statistics.median(
                one["wall_s"] / run["wall_s"] for one, run in zip(alone, found, strict=True)
            ),
            "times_alone_cpu": statistics.median(
                one["cpu_s"] / run["cpu_s"] for one, run in zip(alone, found, strict=True)
            ),
            "tokens": found[0]["tokens"],
        }
        for size, found in runs.items()
    ]


def _pass(speaker: Any, head: Any, probes: Sequence[Any], size: int, new_tokens: int) -> Any:
    import torch

    from verification.batches import plan_batches
    from verification.streaming import score_streaming

    wall, cpu, tokens = time.perf_counter(), time.process_time(), 0
    for batch in plan_batches(probes, size):
        prompts = [speaker.prompt(probes[i]) for i in batch]
        targets = [probes[i].target for i in batch if probes[i].target is not None]
        said = speaker.converse(prompts, new_tokens=new_tokens, targets=targets or None)
        hidden = torch.cat([one.hidden for one in said])
        labels = torch.tensor([token for one in said for token in one.answer.ids])
        score_streaming((hidden, head), (hidden, head), labels)
        tokens += len(labels)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "tokens": tokens,
    }


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    model = "seeded tiny checkpoint" if args.model is None else args.model.name
    return {
        "model": model,
        "samples": args.samples,
        "new_tokens": args.new_tokens,
        "runs": args.runs,
    }


def _machine() -> dict[str, Any]:
    from model_store.records import hardware

    return {
        "processor": hardware(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "date": datetime.now(tz=UTC).date().isoformat(),
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{'batch':>5} {'samples/s':>10} {'x alone':>8} {'x alone, CPU':>13}")
    for row in report["rows"]:
        print(
            f"{row['batch']:>5} {row['samples_per_s']:>10.2f} {row['times_alone']:>8.2f} "
            f"{row['times_alone_cpu']:>13.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())

"""Measure GPTQ against gptqmodel and llm-compressor: error, divergence, seconds and memory.

Examples:
    python benchmarks/gptq.py --write
    python benchmarks/gptq.py --shapes small --seeds 0 --contenders ours:fast gptqmodel:default
    python benchmarks/gptq.py --block

Every contender quantizes the same seeded models with the same samples to 4 bits, groups of 128,
symmetric, in float32, each in a process and, the peers, in an environment of its own that the first
run makes in build/benchmarks/ (pip must reach an index). Scores are of tokens that no contender has
seen, and that no option was chosen by. A run that is there already is not repeated, so that new
settings cost no peer's time; `--fresh` repeats all. `--write` keeps what the record has of other
seeds and shapes, made with the same versions: a shape takes a peer a quarter of an hour a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gptq.json"
BUILD = ROOT / "build" / "benchmarks"
RUNS = BUILD / "gptq"
PEERS = {
    "gptqmodel": ["gptqmodel==7.6.0", "optimum"],
    "llmcompressor": ["llmcompressor==0.14.0.1"],
}
CONTENDERS = (
    "gptqmodel:default", "gptqmodel:best", "llmcompressor:default", "llmcompressor:mse",
    "ours:fast", "ours:balanced", "ours:best", "ours:best+signed_scales=true",
)  # fmt: skip
_MEASURES = ("layer_error", "logits", "kl", "wall_s", "cpu_s", "rss_mb")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not there yet, print the table and perhaps keep it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["qwen2", "llama"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="repeat what was run before")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--tuning", action="store_true", help="score the tuning tokens instead")
    parser.add_argument(
        "--block", action="store_true", help="one block of Qwen-VL's width, with phases, instead"
    )
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(args.threads)
    if args.block:
        args.shapes, args.seeds = ["block"], args.seeds[:1]
    load = os.getloadavg()[0]
    rows = [row for shape in args.shapes for seed in args.seeds for row in _seed(shape, seed, args)]
    place = RESULT.with_name("gptq_block.json") if args.block else RESULT
    versions = {"torch": torch.__version__, "python": platform.python_version(),
                **{package.split("==")[0]: package.split("==")[1]
                   for packages in PEERS.values() for package in packages[:1]}}  # fmt: skip
    rows = _earlier(place, rows, versions) + rows if args.write else rows
    table = _table(rows)
    _print(table)
    if args.write:
        told = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": " ".join(["python benchmarks/gptq.py", *(argv or sys.argv[1:])]),
            "machine": f"{_processor()}, {os.cpu_count()} cores",
            "load_before": round(load, 1),
            "threads": args.threads,
            "versions": versions,
            "work": {name: asdict(_shapes()[name]) for name in {row["shape"]: 0 for row in rows}},
            "table": table,
            "runs": rows,
        }  # fmt: skip
        place.write_text(json.dumps(told, indent=1) + "\n")
    return 0


def _earlier(
    place: Path, rows: list[dict[str, Any]], versions: dict[str, str]
) -> list[dict[str, Any]]:
    """What the record has of shapes and seeds that were not run now."""
    if not place.is_file():
        return []
    record = json.loads(place.read_text())
    fresh = {(row["shape"], row["seed"]) for row in rows}
    if record["versions"] != versions:
        return []
    return [row for row in record["runs"] if (row["shape"], row["seed"]) not in fresh]


def _shapes() -> Any:
    from benchmarks.gptq_models import SHAPES

    return SHAPES


def _seed(shape: str, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    from benchmarks.gptq_models import write_model

    folder = write_model(_shapes()[shape], seed, RUNS / "models" / f"{shape}-{seed}")
    scorer = _Scorer(folder, shape, seed, tuning=args.tuning)
    rows = []
    for contender in args.contenders:
        out = RUNS / "runs" / f"{shape}-{seed}-{contender.replace(':', '-')}"
        if args.fresh or not (out / "run.json").is_file():
            if (tool := contender.split(":")[0]) in PEERS:
                _warm_up(tool, args.threads)
            _run(contender, folder, out, args.threads)
        told = json.loads((out / "run.json").read_text())
        key = "tuning" if args.tuning else "score"
        if key not in told:
            told[key] = scorer.score(out)
            (out / "run.json").write_text(json.dumps(told, indent=1) + "\n")
        row = {"shape": shape, "seed": seed, **told, **told[key]}
        rows.append({name: value for name, value in row.items() if name not in ("score", "tuning")})
        print(json.dumps(rows[-1]), flush=True)
    return rows


class _Scorer:
    """Scores runs of one model; the model is made when the first run asks."""

    def __init__(self, folder: Path, shape: str, seed: int, *, tuning: bool) -> None:
        self._folder, self._shape, self._seed, self._tuning = folder, shape, seed, tuning
        self._model: Any = None

    def score(self, out: Path) -> dict[str, float]:
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        from benchmarks import gptq_models as models
        from benchmarks.gptq_score import score

        if self._model is None:
            self._model = AutoModelForCausalLM.from_pretrained(self._folder, dtype="float32").eval()
        stream = models.TUNING if self._tuning else models.HELD_OUT
        sizes = models.SHAPES[self._shape]
        held_out = models.tokens(sizes, self._seed, stream, sizes.held_out)
        weights = load_file(out / "weights.safetensors")
        return {key: float(f"{value:.5g}") for key, value in
                asdict(score(self._model, weights, held_out)).items()}  # fmt: skip


def _run(contender: str, model: Path, out: Path, threads: int) -> None:
    python = Path(sys.executable)
    tool = contender.split(":")[0]
    if tool in PEERS:
        python = _environment(tool)
    out.mkdir(parents=True, exist_ok=True)
    command = [
        str(python), str(ROOT / "benchmarks" / "gptq_run.py"), contender, str(model), str(out),
        "--threads", str(threads),
    ]  # fmt: skip
    told = dict(os.environ, OMP_NUM_THREADS=str(threads), GPTQMODEL_CPU_WORKERS="2",
                HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")  # fmt: skip
    with (out / "log.txt").open("w") as log:
        # gptqmodel leaves a folder of logs wherever it is started
        done = subprocess.run(command, env=told, cwd=out, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} failed: see {out / 'log.txt'}")


def _environment(tool: str) -> Path:
    """Make a peer's environment; torch first and alone, so that nothing chooses another build."""
    place = BUILD / f"env-{tool}"
    python = place / "bin" / "python"
    if not python.is_file():
        import torch

        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        wanted = f"torch=={torch.__version__.split('+')[0]}"
        for packages in ([wanted], PEERS[tool]):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


def _warm_up(tool: str, threads: int) -> None:
    """Run a peer once where nothing is measured: at first use gptqmodel compiles an extension."""
    done = BUILD / f"env-{tool}" / "warm"
    if not done.is_file():
        from benchmarks.gptq_models import write_model

        folder = write_model(_shapes()["small"], 0, RUNS / "models" / "small-0")
        _run(f"{tool}:default", folder, RUNS / "warm-up" / tool, threads)
        done.touch()


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per shape and contender: mean over seeds, and the seeds' range."""
    table = []
    for shape, contender in dict.fromkeys((row["shape"], row["contender"]) for row in rows):
        mine = [r for r in rows if (r["shape"], r["contender"]) == (shape, contender)]
        line: dict[str, Any] = {"shape": shape, "contender": contender, "seeds": len(mine)}
        for key in _MEASURES:
            values = [row[key] for row in mine]
            line[key] = [float(f"{v:.4g}") for v in
                         (statistics.fmean(values), min(values), max(values))]  # fmt: skip
        table.append(line)
    return table


def _print(table: list[dict[str, Any]]) -> None:
    print(f"{'shape':8}{'contender':24}" + "".join(f"{key:>26}" for key in _MEASURES))
    for line in table:
        cells = [f"{line[k][0]:.4g} [{line[k][1]:.4g}, {line[k][2]:.4g}]" for k in _MEASURES]
        print(f"{line['shape']:8}{line['contender']:24}" + "".join(f"{c:>26}" for c in cells))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((one.split(":")[1].strip() for one in lines if "model name" in one), "unknown")


if __name__ == "__main__":
    sys.exit(main())

"""Let auto-gptq 0.7.1, with pins of its time, read what we write in the layout of 2023.

Examples:
    python benchmarks/gptq_autogptq.py --write

Makes its environment in build/benchmarks/, quantizes a seeded checkpoint with `--layout original`,
and has auto-gptq's own linear load every packed module, strictly, and compute on a CPU. A line a
module; the exit code is 1 when one differs from the integers' definition by more than half
precision does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gptq_autogptq.json"
PLACE = ROOT / "build" / "benchmarks" / "env-autogptq"
LIMIT = 0.005
# auto-gptq itself without what it asks for: that would fetch gigabytes and a transformers of today
PINS = (
    "transformers==4.40.2", "numpy<2", "pyarrow<19", "datasets<3", "accelerate<1", "peft<0.12",
    "safetensors", "sentencepiece", "rouge", "gekko", "tqdm",
)  # fmt: skip
WORKER = """
import json, sys, torch
from safetensors import safe_open
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear
torch.manual_seed(0)
with safe_open(sys.argv[1], framework="pt") as held:
    for key in [key for key in held.keys() if key.endswith(".qweight")]:
        name = key[: -len(".qweight")]
        parts = ("qweight", "qzeros", "scales", "g_idx", "bias")
        state = {part: held.get_tensor(name + "." + part) for part in parts}
        state["bias"] = state["bias"].half()
        columns, rows = len(state["g_idx"]), state["scales"].shape[1]
        linear = QuantLinear(4, int(sys.argv[2]), columns, rows, True, weight_dtype=torch.float16)
        linear.load_state_dict(state, strict=True)
        linear.post_init()
        x = torch.randn(16, columns)
        codes = (state["qweight"][:, None] >> torch.arange(0, 32, 4)[None, :, None]) & 15
        weight = (codes.reshape(columns, rows) - 8) * state["scales"].float()[state["g_idx"].long()]
        expected = x @ weight + state["bias"].float()
        found = linear(x.half()).float()
        error = float((found - expected).norm() / expected.norm())
        print(json.dumps({"module": name, "error": error}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize, load in the old environment, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from model_store.manifest import Manifest, scan, write_manifest
    from quantization.options import GptqConfig
    from quantization.step import quantize_snapshot

    python = _environment()
    work = ROOT / "build" / "benchmarks" / "autogptq"
    if not (work / "source").is_dir():
        maker = ROOT / "scripts" / "make_tiny_checkpoint.py"
        subprocess.run([sys.executable, str(maker), str(work / "source")], check=True)
    if not (work / "source" / "ferry.manifest.json").is_file():
        write_manifest(work / "source", Manifest(files=scan(work / "source")))
    config = GptqConfig(layout="original", dtype="float32", replace=True)
    quantize_snapshot(work / "source", work / "out", config)
    command = [str(python), "-c", WORKER, str(work / "out" / "model.safetensors"), "128"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows: list[dict[str, Any]] = [json.loads(x) for x in done.stdout.splitlines() if x[:1] == "{"]
    for row in rows:
        print(f"{row['module']:40}{row['error']:.2g}")
    if args.write:
        told = {
            "command": "python benchmarks/gptq_autogptq.py --write",
            "limit": LIMIT,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if rows and all(row["error"] <= LIMIT for row in rows) else 1


def _environment() -> Path:
    python = PLACE / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
        for packages in (["torch==2.13.0"], PINS, ["auto-gptq==0.7.1", "--no-deps"]):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())

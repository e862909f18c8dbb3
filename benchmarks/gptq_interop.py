"""Let others load what we quantize: transformers with optimum, and gptqmodel, on a CPU.

Examples:
    python benchmarks/gptq_interop.py --write

Quantizes a small seeded Qwen2 in several ways, and has each loader compute logits in gptqmodel's
environment (made by gptq.py). They are compared with the same model on dequantized weights. Then
our own command runs in that environment, so that its proof on write meets gptqmodel's kernels. A
line each; the exit code is 1 when a loader is further off than its kernel's rounding, or when not
the very cases are refused that gptqmodel 7.6.0 refuses: then the record wants a new look.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gptq_interop.json"
CASES: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"format": "gptq_v2"},
    "dynamic order": {"act_order": "dynamic"},
    "8 bits": {"bits": 8},
    "mixed": {"modules": ("*.down_proj:bits=8",), "exclude": ("*.o_proj",)},
}
LIMIT = 0.03
# refused by gptqmodel 7.6.0 and transformers 5.24.0, for want of a kernel or of widths per module
REFUSED = {
    ("8 bits", "gptqmodel AUTO"),
    ("mixed", "transformers from_pretrained"),
    ("mixed", "gptqmodel AUTO"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize, load elsewhere, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT))
    from benchmarks.gptq import BUILD, _environment

    python = _environment("gptqmodel")
    rows: list[dict[str, Any]] = []
    for case, options in CASES.items():
        folder = _quantized(BUILD / "interop" / case.replace(" ", "-"), options)
        worker = ROOT / "benchmarks" / "gptq_interop_load.py"
        done = subprocess.run(
            [str(python), str(worker), str(folder)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder.parent,
        )
        if done.returncode:
            raise SystemExit(f"{case}: {done.stderr[-2000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                rows.append({"case": case, **json.loads(line)})
                print(json.dumps(rows[-1]), flush=True)
        if args.write:  # after each: a loader that hangs costs its own case only
            _write(rows, {})
    kernels = _proofs(python, BUILD / "interop")
    if args.write:
        _write(rows, {"proof": kernels})
    return 0 if _as_known(rows) and _as_proven(kernels) else 1


def _as_known(rows: list[dict[str, Any]]) -> bool:
    """Whether just the known cases are refused, and all others are near enough."""
    refused = {(row["case"], row["way"]) for row in rows if "failed" in row}
    return refused == REFUSED and all(row.get("error", 0) <= LIMIT for row in rows)


def _as_proven(kernels: list[dict[str, Any]]) -> bool:
    """Whether gptqmodel's kernels passed what we write, and one was named where it errs."""
    ran = {row["case"] for row in kernels if row["kernel"].startswith("gptqmodel ")}
    named = {row["case"] for row in kernels if "named" in row}
    return ran == {"symmetric", "signed scales", "asymmetric"} and named == {"asymmetric"}


def _write(rows: list[dict[str, Any]], proof: dict[str, Any]) -> None:
    command = "python benchmarks/gptq_interop.py --write"
    told = {"command": command, "limit": LIMIT, "cases": list(CASES), "rows": rows}
    RESULT.write_text(json.dumps(told | proof, indent=1) + "\n")


def _proofs(python: Path, work: Path) -> list[dict[str, Any]]:
    """Run the proof on write where gptqmodel's kernels are; modelferry is installed beside it."""
    subprocess.run([str(python), "-m", "pip", "install", "-q", str(ROOT)], check=True)
    worker = ROOT / "benchmarks" / "gptq_interop_proof.py"
    done = subprocess.run(
        [str(python), "-P", str(worker), str(work)],  # qwen_vl.py lies beside it
        capture_output=True,
        text=True,
        check=False,
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"proof: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        print(json.dumps(row), flush=True)
    return rows


def _quantized(place: Path, options: dict[str, Any]) -> Path:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from benchmarks.gptq_models import SHAPES, tokens, write_model
    from benchmarks.gptq_ours import quantized_weights
    from model_store.manifest import Manifest, scan, write_manifest
    from quantization.options import GptqConfig
    from quantization.step import quantize_snapshot

    shape = SHAPES["small"]
    source = write_model(shape, 0, place.parent / "source")
    if not (source / "ferry.manifest.json").is_file():
        write_manifest(source, Manifest(files=scan(source)))
    texts = place.parent / "calibration.jsonl"
    lines = [json.dumps({"input_ids": row}) for row in tokens(shape, 0, 1, 8).tolist()]
    texts.write_text("\n".join(lines) + "\n")
    config = GptqConfig(calibration=str(texts), dtype="float32", replace=True, **options)
    quantize_snapshot(source, place, config)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, weight in quantized_weights(place, config).items():
            state[name].copy_(weight)
        ids = tokens(shape, 0, 2, 1)
        logits = model(ids).logits
    save_file({"ids": ids, "logits": logits}, place.parent / "expected.safetensors")
    return place


if __name__ == "__main__":
    sys.exit(main())

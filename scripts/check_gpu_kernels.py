"""Run the GPU kernels on linears of ours, signed scales included: for the day a device is at hand.

Examples:
    python scripts/check_gpu_kernels.py
    python scripts/check_gpu_kernels.py --write benchmarks/results/gpu_kernels.json

Quantizes seeded layers with the default settings and with signed scales, then compares Marlin,
ExLlamaV2 and Triton of gptqmodel with the integers' definition. Needs CUDA and gptqmodel 7.6.0.
Prints a line a kernel; a kernel that disagrees makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model_store.gptq_format import pack
from quantization.errors import KernelDisagreesError
from quantization.kernels import Stored, disagreements, installed
from quantization.options import GptqConfig
from quantization.solver import quantize_linear

_CASES = ((4, 128, False), (4, 128, True), (4, 32, False), (4, -1, False), (8, 128, False))


def main() -> int:
    """Run every case through every kernel."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--write", type=Path, help="keep the lines as JSON")
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked", file=sys.stderr)
        return 3
    rows = [row for case in _CASES for row in _lines(*case, device=args.device)]
    for row in rows:
        print(f"{row['kernel']:34}{row['case']:28}{row['error']:.3g}  {row['verdict']}")
    if args.write:
        name = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
        args.write.write_text(json.dumps({"device": name, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["verdict"] == "agrees" for row in rows) else 1


def _lines(bits: int, group: int, signed: bool, *, device: str) -> Iterator[dict[str, Any]]:
    stored = _stored(bits, group, signed=signed)
    for kernel in installed(device=device):
        case = f"{bits} bits, group {group}" + (", signed" if signed else "")
        row = {"kernel": kernel.name, "case": case}
        try:
            for _, error in disagreements(stored, [kernel]):
                yield row | {"error": error, "verdict": "agrees"}
        except KernelDisagreesError as found:
            yield row | {"error": found.error, "verdict": "DISAGREES"}


def _stored(bits: int, group: int, *, signed: bool) -> Stored:
    dice = torch.Generator().manual_seed(bits)
    weight = torch.randn(512, 1024, generator=dice)
    inputs = torch.randn(4096, 1024, generator=dice)
    config = GptqConfig(bits=bits, group_size=group, signed_scales=signed)
    result = quantize_linear(weight, 2 * inputs.T @ inputs / len(inputs), config)
    codes, scales, zeros, g_idx = (part.numpy() for part in result)
    packed = pack(codes, zeros, scales, g_idx, bits=bits, version="gptq")
    return Stored("a seeded layer", packed, bits, group, "gptq", desc_act=False)


if __name__ == "__main__":
    sys.exit(main())

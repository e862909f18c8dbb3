"""Our own proof on write where gptqmodel is installed: the second worker of gptq_interop.py.

Quantizes the small model, so that every linear runs through every kernel of gptqmodel that a CPU
has, and then shows each of them an asymmetric linear, which our writer does not make: the kernel
that ignores zero points has to be named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from model_store.gptq_format import pack
from quantization.errors import KernelDisagreesError
from quantization.kernels import Stored, disagreements, installed
from quantization.options import GptqConfig
from quantization.step import quantize_snapshot

_COLUMNS, _ROWS, _GROUP = 256, 128, 128
_KERNEL = "kernel "  # how the record begins a kernel's measurement


def main() -> int:
    """Print a JSON line per kernel and kind of checkpoint."""
    work = Path(sys.argv[1])
    for case, signed in (("symmetric", False), ("signed scales", True)):
        config = GptqConfig(calibration=str(work / "calibration.jsonl"), dtype="float32",
                            replace=True, signed_scales=signed)  # fmt: skip
        target = work / f"proof-{case.replace(' ', '-')}"
        quantize_snapshot(work / "source", target, config)
        record = json.loads((target / "records" / "quantization.json").read_text())
        for one in record["measurements"]:
            if one["name"].startswith(_KERNEL):
                kernel = one["name"].removeprefix(_KERNEL).partition(":")[0]
                _tell(case=case, kernel=kernel, error=float(f"{one['value']:.3g}"))
    asymmetric = _asymmetric()
    for kernel in installed():
        try:
            for name, error in disagreements(asymmetric, [kernel]):
                _tell(case="asymmetric", kernel=name, error=float(f"{error:.3g}"))
        except KernelDisagreesError as refused:
            _tell(case="asymmetric", kernel=kernel.name, named=str(refused))
    return 0


def _tell(**row: object) -> None:
    print(json.dumps(row), flush=True)


def _asymmetric() -> Stored:
    dice = np.random.default_rng(0)
    groups = _COLUMNS // _GROUP
    codes = dice.integers(0, 16, (_COLUMNS, _ROWS), dtype=np.int32)
    zeros = dice.integers(3, 13, (groups, _ROWS), dtype=np.int32)
    scales = dice.uniform(0.01, 0.03, (groups, _ROWS)).astype(np.float16)
    place = np.repeat(np.arange(groups, dtype=np.int32), _GROUP)
    packed = pack(codes, zeros, scales, place, bits=4, version="gptq")
    return Stored("an asymmetric linear", packed, 4, _GROUP, "gptq", desc_act=False)


if __name__ == "__main__":
    sys.exit(main())

"""Our side of gptq.py: the whole command on a folder, proofs and all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model_store.checkpoint import open_checkpoint
from model_store.gptq_format import Version, dequantize
from model_store.manifest import Manifest, scan, write_manifest
from quantization import sequential, step
from quantization.hessian import HessianAccumulator
from quantization.options import PRESETS, GptqConfig
from quantization.step import quantize_snapshot
from quantization.writing import PARTS

_PHASES: dict[str, tuple[Any, str]] = {
    "forward passes, errors": (step, "quantize_layers"),
    "Gram matrices": (HessianAccumulator, "add"),
    "factorization": (sequential, "factor_hessian"),
    "scales, columns, sweeps": (sequential, "quantize_linear"),
    "writing": (step, "assemble"),
    "proof": (step, "check_runs"),
}


def prepare(
    model: Path, out: Path, samples: torch.Tensor, variant: str
) -> tuple[Callable[[], None], Callable[[dict[str, Any]], dict[str, torch.Tensor]]]:
    """Make what is measured, and what afterwards collects the weights.

    Args:
        model: the checkpoint.
        out: an empty folder.
        samples: (count, length) ids.
        variant: a preset, then options: `best+sweeps=2+asymmetric=true`.
    """
    lines = [json.dumps({"input_ids": row.tolist()}) for row in samples]
    texts = out / "calibration.jsonl"
    texts.write_text("\n".join(lines) + "\n")
    if not (model / "ferry.manifest.json").is_file():
        write_manifest(model, Manifest(files=scan(model)))
    preset, *changes = variant.split("+")
    if preset not in PRESETS:
        raise SystemExit(f"{preset!r} is no preset")
    changed = {key: json.loads(value) for key, value in (one.split("=") for one in changes)}
    config = GptqConfig(
        preset=preset, calibration=str(texts), samples=len(samples), dtype="float32",
        replace=True, **changed,
    )  # fmt: skip

    phases: dict[str, float] = {}

    def work() -> None:
        with _timed(phases):
            quantize_snapshot(model, out / "saved", config)

    def collect(told: dict[str, Any]) -> dict[str, torch.Tensor]:
        told["phases"] = {name: round(seconds, 2) for name, seconds in phases.items()}
        return quantized_weights(out / "saved", config)

    return work, collect


@contextmanager
def _timed(phases: dict[str, float]) -> Iterator[None]:
    """Split the CPU seconds of what runs inside; a phase's time is not in the one around it."""
    stack: list[float] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            stack.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time() - start
                phases[name] = phases.get(name, 0.0) + spent - stack.pop()
                if stack:
                    stack[-1] += spent

        return call

    before = [(owner, name, getattr(owner, name)) for owner, name in _PHASES.values()]
    try:
        for phase, (owner, name) in _PHASES.items():
            setattr(owner, name, watched(phase, getattr(owner, name)))
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def quantized_weights(folder: Path, config: GptqConfig) -> dict[str, torch.Tensor]:
    """Every quantized linear of a folder of ours, (out, in) float32, by weight name."""
    found = {}
    version: Version = "gptq_v2" if config.format == "gptq_v2" else "gptq"
    with open_checkpoint(folder) as held:
        for key in [key for key in held.names() if key.endswith(".qweight")]:
            name = key.removesuffix(".qweight")
            parts: list[Any] = [held.read(f"{name}.{part}").values() for part in PARTS]
            values = dequantize(*parts, bits=config.for_module(name).bits, version=version)
            found[f"{name}.weight"] = torch.from_numpy(values.T.copy())
    return found

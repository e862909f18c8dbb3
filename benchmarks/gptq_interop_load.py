"""Load one folder with transformers and with gptqmodel's kernels: the worker of gptq_interop.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def main() -> int:
    """Print a JSON line per loader."""
    folder = Path(sys.argv[1])
    held = load_file(folder.parent / "expected.safetensors")
    ways: dict[str, Callable[[], Any]] = {
        "transformers from_pretrained": lambda: _transformers(folder),
        "gptqmodel AUTO": lambda: _gptqmodel(folder, "AUTO", torch.float32),
        "gptqmodel GPTQ_TORCH": lambda: _gptqmodel(folder, "GPTQ_TORCH", torch.bfloat16),
    }
    versions = {name: metadata.version(name) for name in ("transformers", "optimum", "gptqmodel")}
    for way, load in ways.items():
        row: dict[str, Any] = {"way": way, **versions}
        try:
            model = load()
            with torch.no_grad():
                found = model(held["ids"]).logits.float()
            expected = held["logits"]
            row["error"] = float(f"{float((found - expected).norm() / expected.norm()):.3g}")
            kinds = {
                type(one).__name__ for one in model.modules() if "Linear" in type(one).__name__
            }
            row["kernels"] = sorted(kinds - {"Linear"})
        except Exception as error:  # noqa: BLE001  whatever a loader does is the result
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(row), flush=True)
    return 0


def _transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _gptqmodel(folder: Path, backend: str, dtype: torch.dtype) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(folder), backend=getattr(BACKEND, backend), dtype=dtype)
    return loaded.model.eval()


if __name__ == "__main__":
    sys.exit(main())

"""The embedded trained checkpoint, and ways to damage a snapshot made from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.manifest import Manifest, scan, write_manifest

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "Qwen-VL-Tiny-Chat"
Weights = dict[str, Tensor]


def need_trained() -> Path:
    if not (CHECKPOINT / "ferry.manifest.json").is_file():
        pytest.skip(f"no trained checkpoint in {CHECKPOINT.parent.name}/{CHECKPOINT.name}")
    return CHECKPOINT


def damaged(
    source: Path,
    target: Path,
    weights: Callable[[Weights], None] | None = None,
    **files: Callable[[dict[str, Any]], None],
) -> Path:
    """Copy a native snapshot with changed weights, or changed JSON files (name without .json)."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("records", "ferry.*"))
    if weights is not None:
        file = target / "model.safetensors"
        tensors = load_file(file)
        weights(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    for name, change in files.items():
        path = target / f"{name}.json"
        table = json.loads(path.read_text(encoding="utf-8"))
        change(table)
        path.write_text(json.dumps(table), encoding="utf-8")
    write_manifest(target, Manifest(files=scan(target)))
    return target

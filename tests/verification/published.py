"""Golden cases of the published 2023 code, where the shared folder is at hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDENS = SHARED / "qwen_vl"
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
_STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def need_goldens() -> None:
    if not GOLDENS.is_dir():
        pytest.skip("the golden data are not beside this checkout")


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDENS / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(case: str, name: str) -> Any:
    return json.loads((GOLDENS / "public" / case / name).read_text(encoding="utf-8"))


def write_original(case: str, folder: Path) -> Path:
    """Write a golden case's weights and config as a folder in the 2023 layout."""
    shapes = golden(case, "shapes.json")
    weights: dict[str, np.ndarray] = recipe().state_dict(shapes["shapes"], shapes["salt"])
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = GOLDENS / "public" / case / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder


def pixels(name: str, size: int) -> torch.Tensor:
    """Preprocess one golden image by the published steps: (1, 3, size, size) float32."""
    with Image.open(GOLDENS / name) as image:
        resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(resized, np.float32) / np.float32(255)
    values = (values - _MEAN) / _STD
    return torch.from_numpy(values.transpose(2, 0, 1)[None].copy())

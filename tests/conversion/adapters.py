"""LoRA adapters as PEFT saves them, drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False,
    "use_rslora": False, "target_modules": ["c_attn", "attn.c_proj", "w1", "w2"],
    "modules_to_save": None, "use_dora": False, "task_type": "CAUSAL_LM",
}  # fmt: skip
PREFIX = "base_model.model."


def matrices(
    shapes: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A and B for modules of (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (out, in_) in shapes.items():
        made[f"{PREFIX}{name}.lora_A.weight"] = torch.randn(rank, in_, generator=generator)
        made[f"{PREFIX}{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return made


def write(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, kind: str = "safetensors", **config: Any
) -> Path:
    """Write an adapter's folder."""
    folder.mkdir()
    if kind == "safetensors":
        save_file(dict(tensors), folder / "adapter_model.safetensors")
    else:
        torch.save(dict(tensors), folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder

"""Small seeded decoders of transformers, as snapshots on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model_store.manifest import Manifest, scan, write_manifest

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def decoder(kind: str, **changed: Any) -> Any:
    """A model of the kind with weights that matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changed})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def write_decoder(folder: Path, kind: str = "qwen2", **changed: Any) -> Path:
    """Write the model in float32, with a manifest."""
    decoder(kind, **changed).save_pretrained(folder)
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


def write_ids(path: Path, *, samples: int = 8, length: int = 40) -> Path:
    """Write calibration samples of ids, of several lengths."""
    dice = torch.Generator().manual_seed(3)
    lines = [
        {"input_ids": torch.randint(3, 96, (length - number % 3,), generator=dice).tolist()}
        for number in range(samples)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path

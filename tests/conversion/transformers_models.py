"""Small checkpoints of other families, made and saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from model_store.manifest import Manifest, scan, write_manifest

SIZES: dict[str, Any] = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip


def make_snapshot(
    folder: Path, family: str = "qwen2", *, tied: bool = False, kind: str = "safetensors"
) -> Path:
    """Save a model as transformers does (or as torch.save did), and make the folder a snapshot."""
    torch.manual_seed(1)
    model: Any
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    model.save_pretrained(folder, max_shard_size="100KB")
    if kind == "bin":
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
            path.unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder

"""A two-layer Qwen-VL with 256 byte tokens and 16 rows per image, as a snapshot on disk."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch

from model_store.manifest import Manifest, Source, scan, write_manifest
from model_store.shard_writer import ShardWriter
from model_store.tensors import from_bits
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.modeling import QwenVLForConditionalGeneration

N_RANKS = 256
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK_FILE = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(N_RANKS))


def tiny_config() -> dict[str, Any]:
    return {
        "architectures": ["QwenVLForConditionalGeneration"],
        "model_type": "qwen_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen_vl_text",
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "seq_length": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000,
                "partial_rotary_factor": 1.0,
            },
        },
        "vision_config": {
            "model_type": "qwen_vl_vision",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        "n_queries": 16,
        "output_dim": 64,
        "projector_num_attention_heads": 2,
        "image_start_token_id": N_RANKS + 214,
        "image_end_token_id": N_RANKS + 215,
        "image_token_id": N_RANKS + 216,
    }


def tiny_model(seed: int = 0) -> QwenVLForConditionalGeneration:
    """Random weights, large enough that layers matter."""
    torch.manual_seed(seed)
    model = QwenVLForConditionalGeneration(QwenVLConfig(**tiny_config()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.eval()
    return model


def write_tiny(folder: Path, *, seed: int = 0, source: Source | None = None) -> Path:
    """Write the model as a bf16 snapshot of several shards."""
    folder.mkdir(parents=True)
    state = {name: t.to(torch.bfloat16) for name, t in tiny_model(seed).state_dict().items()}
    plan = [(name, "BF16", tuple(tensor.shape)) for name, tensor in state.items()]
    with ShardWriter(folder, plan, max_shard_bytes=200_000) as writer:
        for name, tensor in state.items():
            writer.add(name, from_bits("BF16", tensor.view(torch.uint16).numpy()))
        writer.finish()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    (folder / "qwen.tiktoken").write_bytes(RANK_FILE)
    (folder / "generation_config.json").write_text('{"chat_format": "chatml"}')
    (folder / "LICENSE").write_text("a licence")
    write_manifest(folder, Manifest(files=scan(folder), source=source))
    return folder

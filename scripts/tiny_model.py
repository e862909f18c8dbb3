"""The shape of the trained tiny model, and its parts for two kinds of optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from qwen_vl.config_map import to_native_config
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.modeling import QwenVLForConditionalGeneration
from scripts.make_tiny_checkpoint import model_config

IMAGE_SIZE = 112
IMAGE_TOKENS = 64
_VOCABULARY_MULTIPLE = 32


def original_config(n_ranks: int) -> dict[str, Any]:
    """The config.json of 2023: `visual.n_queries` is the one key it did not have."""
    config = model_config(n_ranks)
    specials = config["visual"]["image_start_id"] + 3
    config["vocab_size"] = -(-specials // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    config["visual"] |= {
        "heads": 3,
        "image_size": IMAGE_SIZE,
        "layers": 4,
        "mlp_ratio": 4.0,
        "n_queries": IMAGE_TOKENS,
        "width": 192,
    }
    return config


def fresh_model(n_ranks: int) -> QwenVLForConditionalGeneration:
    """An untrained model; torch's global seed decides its weights."""
    native = to_native_config(original_config(n_ranks), n_ranks=n_ranks)
    model = QwenVLForConditionalGeneration(QwenVLConfig(**native))
    model.float().train()
    return model


def matrices_and_rest(
    named: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split trainable parameters: matrices for Muon; embeddings, head, norms and biases."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        table = any(part in name for part in ("embed", "lm_head", "query", "patch_embedding"))
        (matrices if parameter.ndim == 2 and not table else rest).append(parameter)
    return matrices, rest

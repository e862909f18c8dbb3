"""The shape of the trained tiny model, and its parts for two kinds of optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from qwen_vl.config_map import to_native_config
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.modeling import QwenVLForConditionalGeneration
from scripts.make_tiny_checkpoint import model_config

IMAGE_SIZE = 112
IMAGE_TOKENS = 64
_VOCABULARY_MULTIPLE = 32
_PLACES = 0.5  # of the position waves: what a patch brings is of this size
_SHORTEST = 1.2  # of them, in radians a cell
_LIKING = 0.7  # of a token for one like it


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
    _look_nearby(model)
    model.float().train()
    return model


@torch.no_grad()
def _look_nearby(model: QwenVLForConditionalGeneration) -> None:
    """Let the vision tower begin with attention to what is near and alike.

    Queries and keys start as the same turn of their input, as in "Mimetic initialization of
    self-attention layers" (Trockman and Kolter, 2023), and positions as waves so long that
    neighbours are alike: what belongs to one object then finds itself sooner.
    """
    tower = model.model.vision_tower
    table = tower.position_embedding
    width, side = table.shape[1], math.isqrt(len(table))
    cells = IMAGE_SIZE // model.config.vision_config.patch_size
    waves = torch.linspace(_SHORTEST / 24, _SHORTEST, width // 4)  # radians a cell
    phases = torch.outer((torch.arange(side) + 0.5) * cells / side, waves)
    axis = torch.cat([phases.sin(), phases.cos()], dim=1)
    across, down = axis.expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    table.copy_(_PLACES * torch.cat([across, down], dim=-1).flatten(0, 1))
    for layer in tower.layers:
        turn = _LIKING * torch.linalg.qr(torch.randn(width, width))[0]
        layer.self_attn.q_proj.weight.copy_(turn)
        layer.self_attn.k_proj.weight.copy_(turn)


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

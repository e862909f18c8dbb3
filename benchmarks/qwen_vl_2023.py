"""The algorithm of the code of 2023 on our weights: a baseline for benchmarks, and nothing else.

Scores as whole matrices, the cache joined anew in every step, the mask added in full, logits of
every position, and all images encoded again in every forward pass that has no cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, linear, silu

OldCache = list[tuple[Tensor, Tensor]]


def forward(
    model: Any, ids: Tensor, pixels: Tensor | None, cache: OldCache | None
) -> tuple[Tensor, OldCache]:
    """Logits of every position, and the cache with these tokens.

    Args:
        model: ours, for its weights.
        ids: (rows, n).
        pixels: one image per row, encoded only where there is no cache.
        cache: per layer keys and values, (rows, tokens, heads, head_dim).
    """
    x = model.model.language_model.embed_tokens.weight[ids]
    if cache is None and pixels is not None:
        start = ids[0].tolist().index(model.config.image_start_token_id)
        rows = encode(model, pixels)
        x = x.clone()
        x[:, start + 1 : start + 1 + rows.shape[1]] = rows
    past = 0 if cache is None else cache[0][0].shape[1]
    grown: OldCache = []
    rotation = _rotation(model.config.text_config, past + ids.shape[1])
    for number, layer in enumerate(model.model.language_model.layers):
        before = None if cache is None else cache[number]
        mixed, kept = _attend(layer.self_attn, _norm(layer.input_layernorm, x), before, rotation)
        grown.append(kept)
        x = x + mixed
        y, mlp = _norm(layer.post_attention_layernorm, x), layer.mlp
        gated = _line(mlp.up_proj, y) * silu(_line(mlp.gate_proj, y))
        x = x + _line(mlp.down_proj, gated)
    x = _norm(model.model.language_model.norm, x)
    return _line(model.lm_head, x), grown


def encode(model: Any, pixels: Tensor) -> Tensor:
    """Rows of images (images, n_queries, hidden)."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    x = tower.patch_embedding(pixels).flatten(2).transpose(1, 2)
    x = _layer_norm(tower.pre_layernorm, x + _stretched(tower.position_embedding, x.shape[1]))
    for layer in tower.layers:
        y, attention = _layer_norm(layer.layer_norm1, x), layer.self_attn
        x = x + _mix(attention, y, y, y)
        y = _layer_norm(layer.layer_norm2, x)
        x = x + _line(layer.mlp.fc2, gelu(_line(layer.mlp.fc1, y)))
    source = _layer_norm(projector.kv_norm, _line(projector.kv_proj, x))
    query = _layer_norm(projector.q_norm, projector.query) + projector.position_embedding
    key = source + _stretched(projector.position_embedding, source.shape[1])
    pooled = _mix(projector.attention, query.expand(len(x), -1, -1), key, source)
    return _line(projector.output_proj, _layer_norm(projector.post_layernorm, pooled))


def _attend(
    part: Any, x: Tensor, before: tuple[Tensor, Tensor] | None, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    rows, n, _ = x.shape
    q, k, v = (
        _line(proj, x).view(rows, n, -1, part.head_dim)
        for proj in (part.q_proj, part.k_proj, part.v_proj)
    )
    cos, sin = (table[-n:][None, :, None] for table in rotation)
    q, k = _turn(q, cos, sin), _turn(k, cos, sin)
    if before is not None:
        k, v = torch.cat([before[0], k], dim=1), torch.cat([before[1], v], dim=1)
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / part.head_dim**0.5
    future = torch.ones(n, k.shape[1], dtype=torch.bool).triu(k.shape[1] - n + 1)
    scores = scores + future * torch.finfo(x.dtype).min
    mixed = (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).reshape(rows, n, -1)
    return _line(part.o_proj, mixed), (k, v)


def _mix(part: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    def heads(proj: Any, x: Tensor) -> Tensor:
        return _line(proj, x).view(*x.shape[:2], -1, part.head_dim).transpose(1, 2)

    q = heads(part.q_proj, query) / part.head_dim**0.5
    weights = (q @ heads(part.k_proj, key).transpose(2, 3)).softmax(-1)
    mixed = (weights @ heads(part.v_proj, value)).transpose(1, 2).flatten(2)
    return _line(part.out_proj, mixed)


def _rotation(config: Any, length: int) -> tuple[Tensor, Tensor]:
    base = config.rope_parameters["rope_theta"]
    frequencies = 1.0 / base ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


def _stretched(table: Tensor, count: int) -> Tensor:
    if len(table) == count:
        return table
    old, new = int(len(table) ** 0.5), int(count**0.5)
    grid = table.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(count, -1)


def _line(part: Any, x: Tensor) -> Tensor:
    return linear(x, part.weight, part.bias)


def _norm(part: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + part.eps) * part.weight


def _layer_norm(part: Any, x: Tensor) -> Tensor:
    return layer_norm(x, part.normalized_shape, part.weight, part.bias, part.eps)

"""The plain attention that every part falls back to when no kernel is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend in matrix products, softmax in float32.

    Args:
        module: the caller; `training` decides about dropout.
        query: (rows, heads, queries, head_dim).
        key: (rows, heads, keys, head_dim).
        value: (rows, heads, keys, head_dim).
        attention_mask: added to the scores, (rows or 1, 1, queries, keys).
        scaling: factor of the scores.
        dropout: share of weights dropped in training.

    Returns:
        The mixed values (rows, queries, heads, head_dim) and the weights.
    """
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights

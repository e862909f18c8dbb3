"""The resampler: one cross-attention from learned queries to patch features, then a projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qwen_vl.attention import eager_attention
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.vision import stretch_positions


class QwenVLProjectorAttention(nn.Module):
    """Attention whose keys carry positions and whose values do not."""

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        self.config = config
        width = config.output_dim
        self.head_dim = width // config.projector_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.num_key_value_groups = 1
        self.is_causal = False
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        q = self._heads(self.q_proj(query))
        k, v = self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        mixed, _ = attend(self, q, k, v, None, dropout=0.0, scaling=self.scaling, **kwargs)
        out: Tensor = self.out_proj(mixed.reshape(*q.shape[:1], q.shape[2], -1).contiguous())
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class QwenVLProjector(nn.Module):
    """Patch features (images, patches, width) to rows for the decoder (images, n_queries, hidden).

    No residual and no MLP: attention, one norm, one projection.
    """

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__()
        source, width = config.vision_config.hidden_size, config.output_dim
        eps = config.projector_layer_norm_eps
        self.query = nn.Parameter(torch.empty(config.n_queries, width))
        # a stored constant of the checkpoint, so never trained
        table = torch.empty(config.n_queries, width)
        self.position_embedding = nn.Parameter(table, requires_grad=False)
        self.kv_proj = nn.Identity() if source == width else nn.Linear(source, width, bias=False)
        self.q_norm = nn.LayerNorm(width, eps=eps)
        self.kv_norm = nn.LayerNorm(width, eps=eps)
        self.attention = QwenVLProjectorAttention(config)
        self.post_layernorm = nn.LayerNorm(width, eps=eps)
        self.output_proj = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        source = self.kv_norm(self.kv_proj(features))
        positions = stretch_positions(self.position_embedding, source.shape[1])
        query = (self.q_norm(self.query) + self.position_embedding).expand(len(source), -1, -1)
        pooled = self.attention(query, source + positions, source, **kwargs)
        out: Tensor = self.output_proj(self.post_layernorm(pooled))
        return out


def sincos_table(count: int, width: int) -> Tensor:
    """The position table of a fresh projector (count, width): sin | cos of x, then of y."""
    side = int(count**0.5)
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    steps = torch.arange(side, dtype=torch.float32)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    halves = [torch.outer(axis.reshape(-1), omega) for axis in (columns, rows)]
    return torch.cat([part for half in halves for part in (half.sin(), half.cos())], dim=1)

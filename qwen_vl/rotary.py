"""Rotary positions with stepwise dynamic NTK, and log-n scaling of the queries.

NTK: n tokens, with a trained length of L, are rotated with base' = base * α^(d / (d - 2)), where
α = max(2^ceil(log2(n / L) + 1) - 1, 1): 1 up to L, 3 up to 2L, 7 up to 4L, … The step is chosen
when a sequence starts and frozen while its cache lives: cached keys are already rotated.

Log-n: the query at position p is multiplied by max(log_L(p + 1), 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from qwen_vl.configuration import QwenVLTextConfig
from qwen_vl.errors import CacheError

_STEPS = 16  # 2^15 times the trained length
_ON_CACHE = "qwen_vl_ntk_step"  # an attribute, so that a copied cache takes it along


class Rotation(NamedTuple):
    """What attention needs to know of positions, all float32."""

    cos: Tensor  # (rows, positions, rotary_dim)
    sin: Tensor
    query_scale: Tensor | None  # (rows, positions); None where log-n is off


class QwenVLRotaryEmbedding(nn.Module):
    """The rotation of every position; one row of `inv_freq` per NTK step."""

    inv_freq: Tensor

    def __init__(self, config: QwenVLTextConfig) -> None:
        super().__init__()
        self.config = config
        self.compat = "default"
        self.leftover_step = 0  # what 2023 remembered from the last sequence, whoever's it was
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Inverse frequencies (steps, rotary_dim / 2), float32."""
        rope, dim = self.config.rope_parameters or {}, self.config.rotary_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        grown = [max(2 ** (step + 1) - 1, 1) ** (dim / (dim - 2)) for step in range(_STEPS)]
        base = float(rope.get("rope_theta", 10000.0))
        return torch.stack([1.0 / (base * growth) ** exponents for growth in grown])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QwenVLRotaryEmbedding:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # model.half() would round the frequencies, which the original kept in float32
        if self.inv_freq.dtype != torch.float32:
            self.inv_freq = self.frequencies(self.inv_freq.device)
        return self

    @torch.no_grad()
    def forward(self, positions: Tensor, cache: Cache | None, *, past: int | Tensor) -> Rotation:
        """Rotate `positions` (rows, n) that come after `past` cached tokens."""
        if self.compat == "2023":
            steps = self._steps_of_2023(positions, fresh=_is_zero(past))
        else:
            steps = self._steps(positions, cache)
        angles = positions[..., None].float() * self.inv_freq[steps][:, None, :]
        angles = torch.cat((angles, angles), dim=-1)
        return Rotation(angles.cos(), angles.sin(), self._query_scale(positions))

    def _steps(self, positions: Tensor, cache: Cache | None) -> Tensor:
        """NTK step per row: derived where a row starts, else what its cache was started with."""
        if not self.config.use_dynamic_ntk or self.training:
            return positions.new_zeros(positions.shape[0])
        derived = self._step_for(positions.max(dim=-1).values + 1)
        if cache is None:
            return derived
        stored: Tensor | None = getattr(cache, _ON_CACHE, None)
        if stored is None:
            steps = derived
        else:
            stored = _for_rows(stored.to(derived.device), len(derived))
            steps = torch.where(positions[:, 0] == 0, derived, stored)
        if positions.shape[1] > 1 or not torch.compiler.is_compiling():
            setattr(cache, _ON_CACHE, steps)
        return steps

    def _steps_of_2023(self, positions: Tensor, *, fresh: bool) -> Tensor:
        if self.config.use_dynamic_ntk and fresh and not self.training:
            length = torch.tensor(positions.shape[-1])
            self.leftover_step = int(self._step_for(length))
        return positions.new_full((positions.shape[0],), self.leftover_step)

    def _step_for(self, lengths: Tensor) -> Tensor:
        # counting thresholds is ceil(log2(n / L)) without its rounding
        steps = torch.arange(_STEPS - 1, device=lengths.device)
        return (lengths[..., None] > self.config.seq_length * 2**steps).sum(-1)

    def _query_scale(self, positions: Tensor) -> Tensor | None:
        if not self.config.use_logn_attn or self.training:
            return None
        logn = (positions + 1).clamp(min=1).float().log() / math.log(self.config.seq_length)
        return logn.clamp(min=1.0)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the leading channels of `x` (rows, heads, n, head_dim) in float32; keeps its dtype."""
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    dim = cos.shape[-1]
    turned, kept = x[..., :dim].float(), x[..., dim:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((turned.to(x.dtype), kept), dim=-1) if kept.shape[-1] else turned.to(x.dtype)


def scale_queries(query: Tensor, rotation: Rotation) -> Tensor:
    """Apply log-n in the query's own dtype, as the original did."""
    if rotation.query_scale is None:
        return query
    return query * rotation.query_scale[:, None, :, None].to(query.dtype)


def token_positions(attention_mask: Any, *, past: int | Tensor, like: Tensor) -> Tensor:
    """Positions (rows or 1, n) of the new tokens: real tokens counted, padding at zero.

    Args:
        attention_mask: (rows, past + n), zero at padding; anything else counts every token.
        past: cached tokens.
        like: (rows, n, …) of the new tokens.
    """
    n = like.shape[1]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        counted = attention_mask.to(like.device).long().cumsum(dim=-1) - 1
        return counted.clamp(min=0)[:, -n:]
    return (torch.arange(n, device=like.device) + past)[None]


def _for_rows(stored: Tensor, rows: int) -> Tensor:
    if len(stored) == rows:
        return stored
    if rows % len(stored):
        raise CacheError(
            f"the cache was started with {len(stored)} rows and is used with {rows}",
            hint="Start a new cache when the batch changes.",
        )
    return stored.repeat_interleave(rows // len(stored))


def _is_zero(past: int | Tensor) -> bool:
    return int(past) == 0

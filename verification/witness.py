"""An independent float32 forward of the 2023 architecture, straight from the 2023 tensor names.

A weight map that is wrong in a way that undoes itself (gate and up exchanged, say) fools every
comparison in which both sides load through it. This forward shares nothing with that path: no
weight map, no native model, plain functions over the stored tensors, one layer in memory at a time.
It covers what it needs to be a witness: prompts up to `seq_length`, where dynamic NTK and logn
scaling are the identity, and no cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the name everybody knows it by

from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.tensors import RawTensor
from verification.errors import WitnessError
from verification.folders import form_of, layout_of, read_config

_VISUAL = "transformer.visual."
_VISUAL_EPS = 1e-6  # fixed in the 2023 code, whatever the config says
_RESAMPLER_HEAD = 128  # its heads are output_dim // 128
_VOCABULARY_ROWS = 8192  # lm_head is multiplied in slices of this many rows


@dataclass(frozen=True, slots=True)
class WitnessInput:
    """One prompt: ids (positions,), pixels (images, 3, size, size) or None, and what to score."""

    input_ids: Tensor
    pixel_values: Tensor | None
    last: int  # logits are returned for this many last positions


@dataclass(frozen=True, slots=True)
class _Shape:
    hidden: int
    layers: int
    heads: int
    head_dim: int
    rotary_dim: int
    rotary_base: float
    eps: float
    seq_length: int
    visual_layers: int
    visual_heads: int
    image_start: int


class _Weights:
    """The checkpoint's tensors as float32, read when asked for and not kept."""

    def __init__(self, folder: Path) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(folder)
        self._names = frozenset(self._checkpoint.names())
        self._form = form_of(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> Tensor:
        if name not in self._names:
            raise WitnessError(f"the checkpoint has no tensor {name!r}")
        values = self._checkpoint.read(name).values()
        return torch.from_numpy(np.array(values, dtype=np.float32))

    def optional(self, name: str) -> Tensor | None:
        return self.read(name) if name in self._names else None

    def linear(self, x: Tensor, module: str) -> Tensor:
        """Apply a linear module, full precision or GPTQ, with its bias if it has one."""
        bias = self.optional(f"{module}.bias")
        if f"{module}.qweight" in self._names:
            packed = torch.from_numpy(self._form.weight(self._checkpoint.read, module))
            return x @ packed + (0 if bias is None else bias)
        return F.linear(x, self.read(f"{module}.weight"), bias)

    def rows(self, name: str, index: Tensor | slice) -> Tensor:
        """Some rows of a matrix, without widening the others."""
        source = self._checkpoint.source(name)
        count, *shape = source.shape
        wanted = range(count)[index] if isinstance(index, slice) else index.reshape(-1).tolist()
        width = source.nbytes // count
        data = np.empty((len(wanted), width), np.uint8)
        for place, row in zip(data, wanted, strict=True):
            source.read_into(place.data, range(count)[row] * width)
        raw = RawTensor(source.dtype, (len(wanted), *shape), data.reshape(-1).data)
        return torch.from_numpy(np.array(raw.values(), np.float32))

    def row_count(self, name: str) -> int:
        return int(self._checkpoint.info(name).shape[0])


def witness_logits(folder: Path, inputs: Sequence[WitnessInput]) -> list[Tensor]:
    """Run the 2023 architecture on the weights of `folder`, which must be in the 2023 layout.

    Returns:
        For each input the logits (last, vocabulary) of its last positions, float32.

    Raises:
        WitnessError: another layout, a prompt beyond seq_length, or a tensor that is missing.
    """
    shape = _read_shape(folder)
    weights = _Weights(folder)
    with torch.inference_mode():
        return _forward(weights, shape, inputs)


def witness_features(folder: Path, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Run only its vision tower and resampler on preprocessed images (images, 3, side, side).

    Returns:
        For each input the rows (images, queries, hidden) that go into the decoder, float32.

    Raises:
        WitnessError: another layout, or a tensor that is missing.
    """
    shape = _read_shape(folder)
    weights = _Weights(folder)
    with torch.inference_mode():
        return _see(weights, shape, pictures)


def _forward(weights: _Weights, shape: _Shape, inputs: Sequence[WitnessInput]) -> list[Tensor]:
    for given in inputs:
        if len(given.input_ids) > shape.seq_length:
            raise WitnessError(
                f"a prompt of {len(given.input_ids)} tokens is beyond seq_length "
                f"{shape.seq_length}, where the 2023 code rescales positions"
            )
    states = [weights.rows("transformer.wte.weight", given.input_ids) for given in inputs]
    pictures = [given.pixel_values for given in inputs if given.pixel_values is not None]
    if pictures:
        seen = iter(_see(weights, shape, pictures))
        for state, given in zip(states, inputs, strict=True):
            if given.pixel_values is not None:
                _place_images(state, given.input_ids, next(seen), shape.image_start)
    for layer in range(shape.layers):
        states = _decoder_layer(weights, shape, layer, states)
    final = weights.read("transformer.ln_f.weight")
    kept = [
        _rms_norm(state[-given.last :], final, shape.eps)
        for state, given in zip(states, inputs, strict=True)
    ]
    return _unembed(weights, kept)


def _unembed(weights: _Weights, kept: Sequence[Tensor]) -> list[Tensor]:
    total = weights.row_count("lm_head.weight")
    parts: list[list[Tensor]] = [[] for _ in kept]
    for start in range(0, total, _VOCABULARY_ROWS):
        rows = weights.rows("lm_head.weight", slice(start, min(start + _VOCABULARY_ROWS, total)))
        for part, state in zip(parts, kept, strict=True):
            part.append(state @ rows.T)
    return [torch.cat(part, dim=1) for part in parts]


def _place_images(state: Tensor, ids: Tensor, seen: Tensor, image_start: int) -> None:
    """Overwrite, in place, the rows strictly between each <img> and its </img>."""
    starts = (ids == image_start).nonzero().flatten().tolist()
    ends = (ids == image_start + 1).nonzero().flatten().tolist()
    if len(starts) != len(ends) or len(starts) != len(seen):
        raise WitnessError(f"{len(seen)} images for {len(starts)} <img> and {len(ends)} </img>")
    for start, end, rows in zip(starts, ends, seen, strict=True):
        if end - start - 1 != len(rows):
            raise WitnessError(f"an image span of {end - start - 1} tokens for {len(rows)} rows")
        state[start + 1 : end] = rows


def _decoder_layer(
    weights: _Weights, shape: _Shape, layer: int, states: Sequence[Tensor]
) -> list[Tensor]:
    """Add attention(ln_1 x) to x, then mlp(ln_2 x)."""
    at = f"transformer.h.{layer}."
    before, after = weights.read(at + "ln_1.weight"), weights.read(at + "ln_2.weight")
    done = []
    # all prompts go through as one matrix, so that each weight is read and multiplied once
    lengths = [len(state) for state in states]
    x = torch.cat(list(states))
    fused = weights.linear(_rms_norm(x, before, shape.eps), at + "attn.c_attn")
    for part in torch.split(fused, lengths):
        q, k, v = (_heads(third, shape.heads) for third in torch.split(part, shape.hidden, dim=-1))
        mixed = _causal_attention(_rotate(q, shape), _rotate(k, shape), v)
        done.append(mixed.transpose(0, 1).reshape(len(part), shape.hidden))
    x = x + weights.linear(torch.cat(done), at + "attn.c_proj")
    y = _rms_norm(x, after, shape.eps)
    # w2 is the gate
    inner = weights.linear(y, at + "mlp.w1") * F.silu(weights.linear(y, at + "mlp.w2"))
    return list(torch.split(x + weights.linear(inner, at + "mlp.c_proj"), lengths))


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _heads(x: Tensor, heads: int) -> Tensor:
    """(positions, heads · d) -> (heads, positions, d)."""
    return x.reshape(len(x), heads, -1).transpose(0, 1)


def _rotate(x: Tensor, shape: _Shape) -> Tensor:
    """Turn the two halves of the first `rotary_dim` channels by position · base^(-2i/d)."""
    d = shape.rotary_dim
    frequency = shape.rotary_base ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
    angle = torch.outer(torch.arange(x.shape[1], dtype=torch.float32), frequency)
    cos, sin = angle.cos(), angle.sin()
    first, second, rest = x[..., : d // 2], x[..., d // 2 : d], x[..., d:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def _see(weights: _Weights, shape: _Shape, pictures: Sequence[Tensor]) -> list[Tensor]:
    """Encode all prompts' images; one tensor (images, queries, hidden) per prompt."""
    pixels = torch.cat(list(pictures)).float()
    kernel = weights.read(_VISUAL + "conv1.weight")
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1])
    grid = (patches.shape[2], patches.shape[3])
    x = patches.flatten(2).transpose(1, 2)  # row by row
    x = x + _resized(weights.read(_VISUAL + "positional_embedding"), grid)
    x = _layer_norm(weights, x, "ln_pre")
    for layer in range(shape.visual_layers):
        x = _visual_block(weights, x, f"transformer.resblocks.{layer}.", shape.visual_heads)
    x = _resample(weights, x, grid)
    x = _layer_norm(weights, x, "ln_post") @ weights.read(_VISUAL + "proj")
    return list(torch.split(x, [len(images) for images in pictures]))


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a square table of position vectors (rows, width) to another grid, bicubically."""
    side = math.isqrt(len(table))
    if grid == (side, side):
        return table
    square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return scaled.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)


def _layer_norm(weights: _Weights, x: Tensor, name: str) -> Tensor:
    weight, bias = weights.read(f"{_VISUAL}{name}.weight"), weights.read(f"{_VISUAL}{name}.bias")
    return F.layer_norm(x, weight.shape, weight, bias, _VISUAL_EPS)


def _visual_block(weights: _Weights, x: Tensor, at: str, heads: int) -> Tensor:
    images, patches, width = x.shape
    fused = weights.linear(_layer_norm(weights, x, at + "ln_1"), _VISUAL + at + "attn.in_proj")
    # rows are q, k, v of head 0, then of head 1, …: not all q first
    q, k, v = fused.reshape(images, patches, heads, 3, width // heads).permute(3, 0, 2, 1, 4)
    mixed = _attention(q, k, v).transpose(1, 2).reshape(images, patches, width)
    x = x + weights.linear(mixed, _VISUAL + at + "attn.out_proj")
    inner = weights.linear(_layer_norm(weights, x, at + "ln_2"), _VISUAL + at + "mlp.c_fc")
    return x + weights.linear(F.gelu(inner), _VISUAL + at + "mlp.c_proj")


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _resample(weights: _Weights, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Let the learned queries look at the patches once; positions go on q and k, not on v."""
    at = "attn_pool."
    if _VISUAL + at + "kv_proj.weight" in weights:
        x = weights.linear(x, _VISUAL + at + "kv_proj")
    x = _layer_norm(weights, x, at + "ln_kv")
    position = weights.read(_VISUAL + at + "pos_embed")
    query = _layer_norm(weights, weights.read(_VISUAL + at + "query"), at + "ln_q") + position
    width = x.shape[-1]
    in_weight = weights.read(_VISUAL + at + "attn.in_proj_weight").reshape(3, width, width)
    in_bias = weights.read(_VISUAL + at + "attn.in_proj_bias").reshape(3, width)
    given = (query.expand(len(x), -1, -1), x + _resized(position, grid), x)
    heads = max(1, width // _RESAMPLER_HEAD)
    q, k, v = (
        F.linear(part, in_weight[i], in_bias[i]).reshape(len(x), -1, heads, width // heads)
        for i, part in enumerate(given)
    )
    mixed = _attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    mixed = mixed.transpose(1, 2).reshape(len(x), -1, width)
    return weights.linear(mixed, _VISUAL + at + "attn.out_proj")


def _read_shape(folder: Path) -> _Shape:
    config = read_config(folder)
    if layout_of(config) != "original":
        raise WitnessError("the witness reads the 2023 layout only")
    try:
        visual = config["visual"]
        head_dim = int(config.get("kv_channels", 128))
        return _Shape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            head_dim=head_dim,
            rotary_dim=int(head_dim * float(config.get("rotary_pct", 1.0))),
            rotary_base=float(config.get("rotary_emb_base", 10000)),
            eps=float(config["layer_norm_epsilon"]),
            seq_length=int(config["seq_length"]),
            visual_layers=int(visual["layers"]),
            visual_heads=int(visual["heads"]),
            image_start=int(visual["image_start_id"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WitnessError(f"config.json lacks what the 2023 code needs: {error!r}") from error

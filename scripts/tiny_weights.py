"""The weights of the tiny demo checkpoint: seeded noise with gains, and a head counted from text.

Untrained, yet a fair subject for quantizing and comparing: the embeddings carry the residual
stream, the blocks add to it as a trained net's do, and `lm_head` is fitted to the next-token counts
of the corpus, so that there are clear winners and greedy replies are words.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from model_store.tensors import RawTensor, from_bits
from qwen_vl.ranks import END_OF_TEXT, IM_END
from scripts.tiny_corpus import turns

Floats = NDArray[np.float64]
Config = Mapping[str, Any]

_EMBEDDINGS = "transformer.wte.weight"
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Gains:
    """How large things are, chosen by measuring.

    Rounding the decoder's linears to 4 bits costs little; an exchanged layer or a tensor scaled by
    1.5 costs several times as much.
    """

    attention: float = 1.3  # c_attn: how sharp attention is
    attention_out: float = 0.11  # attn.c_proj: what attention adds to a stream of 1
    mlp_in: float = 1.0  # w1, w2
    mlp_out: float = 0.25  # mlp.c_proj
    listened: float = 1.99  # norm weight of the channels that a layer listens to, others are small
    winner: float = 10.0  # logit of a token that always follows
    head_noise: float = 0.3  # standard deviation of the other logits
    ridge: float = 0.3  # of the head's fit, against the mean square of its inputs


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the 2023 layout, in the order of the published index."""
    hidden, vision = config["hidden_size"], config["visual"]
    width, out = vision["width"], vision["output_dim"]
    mlp, vision_mlp = config["intermediate_size"] // 2, int(width * vision["mlp_ratio"])
    found: dict[str, tuple[int, ...]] = {_EMBEDDINGS: (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        block = {
            "ln_1.weight": (hidden,),
            "attn.c_attn.weight": (3 * hidden, hidden),
            "attn.c_attn.bias": (3 * hidden,),
            "attn.c_proj.weight": (hidden, hidden),
            "ln_2.weight": (hidden,),
            "mlp.w1.weight": (mlp, hidden),
            "mlp.w2.weight": (mlp, hidden),
            "mlp.c_proj.weight": (hidden, mlp),
        }
        found |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    found["transformer.ln_f.weight"] = (hidden,)
    eye: dict[str, tuple[int, ...]] = {
        "positional_embedding": (256, width),
        "proj": (out, out),
        "conv1.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        **_norm("ln_pre", width),
    }
    for layer in range(vision["layers"]):
        inside = {
            **_norm("ln_1", width),
            **_norm("ln_2", width),
            **_linear("attn.in_proj", 3 * width, width),
            **_linear("attn.out_proj", width, width),
            **_linear("mlp.c_fc", vision_mlp, width),
            **_linear("mlp.c_proj", width, vision_mlp),
        }
        eye |= {f"transformer.resblocks.{layer}.{name}": shape for name, shape in inside.items()}
    eye |= {"attn_pool.pos_embed": (256, out), "attn_pool.query": (256, out)}
    if width != out:
        eye["attn_pool.kv_proj.weight"] = (out, width)
    eye |= {
        "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,),
    }
    eye |= _linear("attn_pool.attn.out_proj", out, out)
    eye |= {
        **_norm("attn_pool.ln_q", out),
        **_norm("attn_pool.ln_kv", out),
        **_norm("ln_post", out),
    }
    found |= {f"transformer.visual.{name}": shape for name, shape in eye.items()}
    return found | {_HEAD: (config["vocab_size"], hidden)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def tensors(
    config: Config, encoding: tiktoken.Encoding, *, seed: int, gains: Gains | None = None
) -> Iterator[tuple[str, RawTensor]]:
    """Yield every tensor as bf16, one at a time."""
    gains = gains or Gains()
    for name, shape in shapes(config).items():
        values = _values(name, shape, seed, gains)
        if name == _HEAD:
            embeddings = _values(_EMBEDDINGS, shape, seed, gains)
            _fit_head(values, embeddings, encoding, gains)
        yield name, to_bf16(values)


def _generator(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    return _generator(name, seed).standard_normal(shape)


def _flat(name: str, shape: tuple[int, ...], seed: int) -> Floats:
    """Uniform noise of variance 1: no outliers, so a group's 4-bit scale fits all of it."""
    return (_generator(name, seed).random(shape) * 2 - 1) * math.sqrt(3)


def _values(name: str, shape: tuple[int, ...], seed: int, gains: Gains) -> Floats:
    if name.endswith("attn_pool.pos_embed"):
        return _sines(*shape)
    if name.startswith("transformer.h."):
        return _decoder_values(name, _flat(name, shape, seed), gains)
    normal = _normal(name, shape, seed)
    if len(shape) == 1:
        # norms scale around 1, biases shift around 0
        return 1 + 0.05 * normal if name.endswith("weight") else 0.02 * normal
    if name == _EMBEDDINGS or name.endswith("attn_pool.query"):
        return normal
    if name.endswith("positional_embedding"):
        return 0.5 * normal
    fan_in = shape[0] if name.endswith("visual.proj") else math.prod(shape[1:])
    return normal * (_gain(name, gains) / math.sqrt(fan_in))


def _decoder_values(name: str, noise: Floats, gains: Gains) -> Floats:
    """A layer listens to a quarter of the channels and writes into the next layer's quarter.

    So the order of the layers matters, as it does in a trained net; noise alone would commute.
    """
    layer = int(name.split(".")[2])
    if name.endswith("bias"):
        return 0.02 * noise
    if noise.ndim == 1:
        return _channels(layer, len(noise), gains.listened) * (1 + 0.05 * noise)
    values = noise * (_gain(name, gains) / math.sqrt(noise.shape[1]))
    if name.endswith("c_proj.weight"):
        values *= _channels(layer + 1, len(noise), gains.listened)[:, None]
    return values


def _channels(layer: int, size: int, high: float) -> Floats:
    """`high` on the layer's quarter of the channels, less elsewhere; the mean square is 1."""
    factors = np.full(size, math.sqrt((4 - high**2) / 3))
    quarter = size // 4
    start = layer % 4 * quarter
    factors[start : start + quarter] = high
    return factors


def _gain(name: str, gains: Gains) -> float:
    if ".visual." in name:
        return 0.5 if name.endswith(("mlp.c_proj.weight", "attn.out_proj.weight")) else 1.0
    named = {
        "attn.c_attn.weight": gains.attention,
        "attn.c_proj.weight": gains.attention_out,
        "mlp.w1.weight": gains.mlp_in,
        "mlp.w2.weight": gains.mlp_in,
        "mlp.c_proj.weight": gains.mlp_out,
        "lm_head.weight": gains.head_noise,
    }
    return next(gain for ending, gain in named.items() if name.endswith(ending))


def _sines(positions: int, channels: int) -> Floats:
    """Sines and cosines of the column, then of the row, of a square grid."""
    side, half = math.isqrt(positions), channels // 2
    steps = 10000 ** -(np.arange(half // 2) / (half / 2))
    angles = np.arange(side)[:, None] * steps
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns, rows = np.tile(axis, (side, 1)), np.repeat(axis, side, axis=0)
    return np.concatenate([columns, rows], axis=1)


def _fit_head(head: Floats, embeddings: Floats, encoding: tiktoken.Encoding, gains: Gains) -> None:
    """Add to `head`, in place, the least squares fit of the corpus' next-token logits.

    Solves min ‖W Xᵀ - L‖² + λ‖W‖² for the tokens X that occur, each normalised as the model's last
    norm does, and the logits L, `winner` for a certain successor and less for rarer ones.
    """
    follows = _successors(encoding)
    before = sorted(follows)
    after = sorted({token for counts in follows.values() for token in counts})
    row = {token: index for index, token in enumerate(after)}
    logits = np.zeros((len(after), len(before)))
    for column, token in enumerate(before):
        total = follows[token].total()
        for successor, count in follows[token].items():
            logits[row[successor], column] = gains.winner + math.log(count / total)
    x = embeddings[before]
    x /= np.sqrt((x * x).mean(axis=1, keepdims=True))
    gram = x.T @ x + gains.ridge * len(before) / x.shape[1] * np.eye(x.shape[1])
    head[after] += np.linalg.solve(gram, x.T @ logits.T).T


def _successors(encoding: tiktoken.Encoding) -> dict[int, Counter[int]]:
    """Count which token follows which in the answers, framed as ChatML frames them."""
    follows: dict[int, Counter[int]] = {}
    (end,) = encoding.encode(IM_END, allowed_special="all")
    (stop,) = encoding.encode(END_OF_TEXT, allowed_special="all")
    newline = encoding.encode("\n")
    for turn in turns():
        ids = [*newline, *encoding.encode(turn.answer, allowed_special="all"), end, stop]
        for one, two in pairwise(ids):
            follows.setdefault(one, Counter())[two] += 1
    return follows


def to_bf16(values: Floats) -> RawTensor:
    """Round to nearest, ties to even; the values are finite."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return from_bits("BF16", (rounded >> np.uint32(16)).astype(np.uint16))

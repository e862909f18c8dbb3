"""Tiny random Qwen-VL snapshots: 2023 layout, native layout, and round-to-nearest Int4."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_store.gptq_format import dequantize, pack
from model_store.manifest import Manifest, scan, write_manifest
from model_store.tensors import RawTensor, from_bits
from model_store.weight_rules import TensorSpec, WeightMap
from qwen_vl.config_map import to_native_config
from qwen_vl.weight_map import WEIGHT_MAP

Weights = dict[str, NDArray[Any]]
RANKS = 256  # the single bytes; digits and brackets among them, so boxes can be spelt
LAYERS, HIDDEN, MLP, WIDTH, QUERIES = 2, 128, 256, 32, 16
GROUP = 32
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "fp32": True,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * MLP,
    "kv_channels": 64,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "torch_dtype": "float32",
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": 480,
    "visual": {
        "heads": 2,
        "image_size": 56,
        "image_start_id": RANKS + 214,
        "layers": 1,
        "mlp_ratio": 2.0,
        "n_queries": QUERIES,
        "output_dim": HIDDEN,
        "patch_size": 14,
        "width": WIDTH,
    },
}


def original_weights(seed: int = 0) -> Weights:
    """Random weights under the names of 2023."""
    dice = np.random.default_rng(seed)
    weights: Weights = {}

    def normal(name: str, *shape: int, std: float = 0.02, mean: float = 0.0) -> None:
        weights[name] = (mean + std * dice.standard_normal(shape)).astype(np.float32)

    normal("transformer.wte.weight", CONFIG["vocab_size"], HIDDEN, std=1.0)
    normal("transformer.ln_f.weight", HIDDEN, std=0.1, mean=1.0)
    # every token has one clear successor, as after training; noise alone is all near ties
    successors = dice.permutation(CONFIG["vocab_size"])
    weights["lm_head.weight"] = 0.07 * weights["transformer.wte.weight"][successors]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}."
        normal(at + "ln_1.weight", HIDDEN, std=0.1, mean=1.0)
        normal(at + "ln_2.weight", HIDDEN, std=0.1, mean=1.0)
        normal(at + "attn.c_attn.weight", 3 * HIDDEN, HIDDEN, std=1 / HIDDEN**0.5)
        normal(at + "attn.c_attn.bias", 3 * HIDDEN, std=0.1)
        normal(at + "attn.c_proj.weight", HIDDEN, HIDDEN, std=0.5 / HIDDEN**0.5)
        for name in ("w1", "w2"):
            normal(at + f"mlp.{name}.weight", MLP, HIDDEN, std=1 / HIDDEN**0.5)
        normal(at + "mlp.c_proj.weight", HIDDEN, MLP, std=0.5 / MLP**0.5)
    _vision(normal)
    return weights


def _vision(normal: Callable[..., None]) -> None:
    at = "transformer.visual."
    normal(at + "conv1.weight", WIDTH, 3, 14, 14, std=0.04)
    normal(at + "positional_embedding", 256, WIDTH, std=0.5)
    normal(at + "proj", HIDDEN, HIDDEN, std=1 / HIDDEN**0.5)
    normal(at + "attn_pool.query", QUERIES, HIDDEN, std=1.0)
    normal(at + "attn_pool.pos_embed", QUERIES, HIDDEN, std=0.5)
    normal(at + "attn_pool.kv_proj.weight", HIDDEN, WIDTH, std=1 / WIDTH**0.5)
    normal(at + "attn_pool.attn.in_proj_weight", 3 * HIDDEN, HIDDEN, std=1 / HIDDEN**0.5)
    normal(at + "attn_pool.attn.in_proj_bias", 3 * HIDDEN)
    normal(at + "attn_pool.attn.out_proj.weight", HIDDEN, HIDDEN, std=1 / HIDDEN**0.5)
    normal(at + "attn_pool.attn.out_proj.bias", HIDDEN)
    block = at + "transformer.resblocks.0."
    for name, rows, columns in (
        ("attn.in_proj", 3 * WIDTH, WIDTH),
        ("attn.out_proj", WIDTH, WIDTH),
        ("mlp.c_fc", 2 * WIDTH, WIDTH),
        ("mlp.c_proj", WIDTH, 2 * WIDTH),
    ):
        normal(f"{block}{name}.weight", rows, columns, std=1 / columns**0.5)
        normal(f"{block}{name}.bias", rows)
    norms = {"ln_pre": WIDTH, "ln_post": HIDDEN, "attn_pool.ln_q": HIDDEN}
    norms |= {"attn_pool.ln_kv": HIDDEN}
    norms |= {f"transformer.resblocks.0.ln_{i}": WIDTH for i in (1, 2)}
    for name, size in norms.items():
        normal(f"{at}{name}.weight", size, std=0.1, mean=1.0)
        normal(f"{at}{name}.bias", size, std=0.1)


def write_snapshot(
    folder: Path, weights: Weights, config: Mapping[str, Any], *, ranks: int = RANKS
) -> Path:
    """Write weights, config and a rank file of single bytes, and pairs beyond, as a snapshot."""
    folder.mkdir(parents=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = [bytes([i]) if i < 256 else bytes([97, 97 + i - 256]) for i in range(ranks)]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("".join(lines), encoding="utf-8")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


def read_weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def write_original(folder: Path, weights: Weights | None = None) -> Path:
    return write_snapshot(folder, original_weights() if weights is None else weights, CONFIG)


def native_config() -> dict[str, Any]:
    return to_native_config(CONFIG, n_ranks=RANKS)


def to_native(weights: Weights, table: WeightMap = WEIGHT_MAP) -> Weights:
    """Rename by a table, the right one or a wrong one."""
    kinds = {"float32": "F32", "float16": "F16", "int32": "I32"}
    infos = {
        name: TensorSpec(name, kinds[str(array.dtype)], array.shape)
        for name, array in weights.items()
    }

    def read(name: str) -> RawTensor:
        return from_bits(infos[name].dtype, weights[name])

    made: Weights = {}
    for move in table.forward(infos, heads=CONFIG["visual"]["heads"]):
        for target, raw in zip(move.targets, move.apply(read), strict=True):
            made[target.name] = np.array(raw.values())
    return made


def write_native(folder: Path, weights: Weights, *, quantized: bool = False) -> Path:
    """Write native weights with the native config."""
    config = native_config()
    if quantized:
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": True,
            "checkpoint_format": "gptq",
        }
    return write_snapshot(folder, weights, config)


def rtn_int4(native: Weights) -> Weights:
    """Round the decoder's linears of a native checkpoint to nearest, 4 bits."""
    made: Weights = {}
    for name, array in native.items():
        if not (".layers." in name and "language_model" in name and array.ndim == 2):
            made[name] = array
            continue
        module = name.removesuffix(".weight")
        groups = array.T.reshape(-1, GROUP, array.shape[0])  # (groups, GROUP, out)
        scales = (np.abs(groups).max(1) / 7.5).astype(np.float16)
        codes = np.clip(np.rint(groups / scales[:, None]) + 8, 0, 15).astype(np.uint8)
        zeros = np.full_like(scales, 8, dtype=np.uint8)
        g_idx = np.arange(array.shape[1], dtype=np.int32) // GROUP
        rows = codes.reshape(array.shape[1], -1)
        packed = pack(rows, zeros, scales, g_idx, bits=4, version="gptq")
        made |= {f"{module}.{part}": value for part, value in packed._asdict().items()}
    return made


def plain_weight(weights: Weights, module: str) -> NDArray[np.float32]:
    """A packed module's weight, (in, out)."""
    qweight, qzeros, scales, g_idx = (
        weights[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    return dequantize(qweight, qzeros, scales, g_idx, bits=4, version="gptq")

"""A model of a few kilobytes in the layout of 2023, for tests of loading and not of numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.qwen_vl import golden_weights
from tests.qwen_vl.text_goldens import small_ranks, write_rank_file

HIDDEN, WIDTH, MLP, VOCAB, QUERIES = 64, 32, 96, 512, 16
IMAGE_START = len(small_ranks()) + 214

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "bf16": False,
    "fp16": False,
    "fp32": True,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * MLP,
    "kv_channels": 32,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "no_bias": True,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": VOCAB,
    "visual": {
        "heads": 2,
        "image_size": 28,
        "image_start_id": IMAGE_START,
        "layers": 1,
        "mlp_ratio": 2.0,
        "n_queries": QUERIES,
        "output_dim": HIDDEN,
        "patch_size": 7,
        "width": WIDTH,
    },
}


def shapes(*, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, HIDDEN),
        "transformer.ln_f.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for n in range(2):
        made |= {f"transformer.h.{n}.{name}": shape for name, shape in _LAYER.items()}
    made |= {f"transformer.visual.{name}": shape for name, shape in _visual(width).items()}
    if width == HIDDEN:
        del made["transformer.visual.attn_pool.kv_proj.weight"]
    return made


_LAYER: dict[str, tuple[int, ...]] = {
    "ln_1.weight": (HIDDEN,),
    "ln_2.weight": (HIDDEN,),
    "attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
    "attn.c_attn.bias": (3 * HIDDEN,),
    "attn.c_proj.weight": (HIDDEN, HIDDEN),
    "mlp.w1.weight": (MLP, HIDDEN),
    "mlp.w2.weight": (MLP, HIDDEN),
    "mlp.c_proj.weight": (HIDDEN, MLP),
}


def _visual(width: int) -> dict[str, tuple[int, ...]]:
    block = "transformer.resblocks.0."
    return {
        "positional_embedding": (256, width),
        "conv1.weight": (width, 3, 7, 7),
        "proj": (HIDDEN, HIDDEN),
        **{f"ln_pre.{leaf}": (width,) for leaf in ("weight", "bias")},
        **{f"ln_post.{leaf}": (HIDDEN,) for leaf in ("weight", "bias")},
        **{f"{block}ln_{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")},
        f"{block}attn.in_proj.weight": (3 * width, width),
        f"{block}attn.in_proj.bias": (3 * width,),
        f"{block}attn.out_proj.weight": (width, width),
        f"{block}attn.out_proj.bias": (width,),
        f"{block}mlp.c_fc.weight": (2 * width, width),
        f"{block}mlp.c_fc.bias": (2 * width,),
        f"{block}mlp.c_proj.weight": (width, 2 * width),
        f"{block}mlp.c_proj.bias": (width,),
        "attn_pool.pos_embed": (QUERIES, HIDDEN),
        "attn_pool.query": (QUERIES, HIDDEN),
        "attn_pool.kv_proj.weight": (HIDDEN, width),
        "attn_pool.attn.in_proj_weight": (3 * HIDDEN, HIDDEN),
        "attn_pool.attn.in_proj_bias": (3 * HIDDEN,),
        "attn_pool.attn.out_proj.weight": (HIDDEN, HIDDEN),
        "attn_pool.attn.out_proj.bias": (HIDDEN,),
        **{f"attn_pool.ln_{n}.{leaf}": (HIDDEN,) for n in ["q", "kv"] for leaf in _NORM},
    }


_NORM = ("weight", "bias")


def tensors(*, width: int = WIDTH) -> dict[str, torch.Tensor]:
    made = golden_weights.weights(shapes(width=width), "tiny")
    return {name: torch.from_numpy(array) for name, array in made.items()}


def write_small_folder(folder: Path, **changes: Any) -> Path:
    """config.json and the rank file; the caller adds weights."""
    folder.mkdir(parents=True, exist_ok=True)
    visual = CONFIG["visual"] | changes.pop("visual", {})
    (folder / "config.json").write_text(json.dumps(CONFIG | changes | {"visual": visual}))
    write_rank_file(folder / "qwen.tiktoken", small_ranks())
    return folder


def text_ids(count: int) -> torch.Tensor:
    return torch.from_numpy(golden_weights.text_ids(count, "tiny", vocab=len(small_ranks())))


def image_ids() -> torch.Tensor:
    """An image block; what lies inside must not matter."""
    inside = torch.from_numpy(np.arange(QUERIES))
    return torch.cat([torch.tensor([IMAGE_START]), inside, torch.tensor([IMAGE_START + 1])])

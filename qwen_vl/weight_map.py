"""Qwen-VL's weight map: the names of 2023 against the native layout, exact in both directions.

    plan = native_plan(infos, vision_heads=16)      # infos: name -> .dtype, .shape
    for move in plan:                               # the order is the same on every machine
        for target, tensor in zip(move.targets, move.apply(checkpoint.read)):
            ...                                     # target.name, .dtype, .shape; tensor: RawTensor

`infos` is any mapping from tensor name to something with `.dtype` and `.shape`, for example
`{name: checkpoint.info(name) for name in checkpoint.names()}`. `original_plan` is the inverse. Both
look at names and shapes only, and refuse a name that the table does not have. bf16 modules
(`.weight`) and GPTQ modules (`.qweight`, `.qzeros`, `.scales`, `.g_idx`) are the same table; GPTQ
tensors are split without requantizing, whatever the version of the format.

Facts behind the table: the gate of the MLP is `w2`; `c_attn` stacks Q, K, V; the vision tower's
`in_proj` interleaves them per head; the resampler's stacks them; `proj` is stored (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_store.weight_rules import Move, Op, Rule, TensorInfo, WeightMap

_TEXT = "model.language_model."
_LAYER = "model.language_model.layers.{}."
_ATTN = _LAYER + "self_attn."
_EYE = "model.vision_tower."
_BLOCK = "model.vision_tower.layers.{}."
_LOOK = _BLOCK + "self_attn."
_JOIN = "model.multi_modal_projector."
_POOL = _JOIN + "attention."

RULES = (
    Rule("transformer.wte.weight", (_TEXT + "embed_tokens.weight",)),
    # the decoder; fused tensors stack Q, K, V
    Rule("transformer.h.{}.ln_1.weight", (_LAYER + "input_layernorm.weight",)),
    Rule(
        "transformer.h.{}.attn.c_attn.weight",
        (_ATTN + "q_proj.weight", _ATTN + "k_proj.weight", _ATTN + "v_proj.weight"),
        Op.ROWS,
    ),
    Rule(
        "transformer.h.{}.attn.c_attn.qweight",
        (_ATTN + "q_proj.qweight", _ATTN + "k_proj.qweight", _ATTN + "v_proj.qweight"),
        Op.COLUMNS,
    ),
    Rule(
        "transformer.h.{}.attn.c_attn.qzeros",
        (_ATTN + "q_proj.qzeros", _ATTN + "k_proj.qzeros", _ATTN + "v_proj.qzeros"),
        Op.COLUMNS,
    ),
    Rule(
        "transformer.h.{}.attn.c_attn.scales",
        (_ATTN + "q_proj.scales", _ATTN + "k_proj.scales", _ATTN + "v_proj.scales"),
        Op.COLUMNS,
    ),
    # g_idx is per input column, and the three share their input
    Rule(
        "transformer.h.{}.attn.c_attn.g_idx",
        (_ATTN + "q_proj.g_idx", _ATTN + "k_proj.g_idx", _ATTN + "v_proj.g_idx"),
        Op.COPY,
    ),
    Rule(
        "transformer.h.{}.attn.c_attn.bias",
        (_ATTN + "q_proj.bias", _ATTN + "k_proj.bias", _ATTN + "v_proj.bias"),
        Op.ROWS,
    ),
    Rule("transformer.h.{}.attn.c_proj.weight", (_ATTN + "o_proj.weight",)),
    Rule("transformer.h.{}.attn.c_proj.qweight", (_ATTN + "o_proj.qweight",)),
    Rule("transformer.h.{}.attn.c_proj.qzeros", (_ATTN + "o_proj.qzeros",)),
    Rule("transformer.h.{}.attn.c_proj.scales", (_ATTN + "o_proj.scales",)),
    Rule("transformer.h.{}.attn.c_proj.g_idx", (_ATTN + "o_proj.g_idx",)),
    Rule("transformer.h.{}.attn.c_proj.bias", (_ATTN + "o_proj.bias",)),
    Rule("transformer.h.{}.ln_2.weight", (_LAYER + "post_attention_layernorm.weight",)),
    # the block computes w1(x) * silu(w2(x)): w2 is the gate, not w1
    Rule("transformer.h.{}.mlp.w2.weight", (_LAYER + "mlp.gate_proj.weight",)),
    Rule("transformer.h.{}.mlp.w2.qweight", (_LAYER + "mlp.gate_proj.qweight",)),
    Rule("transformer.h.{}.mlp.w2.qzeros", (_LAYER + "mlp.gate_proj.qzeros",)),
    Rule("transformer.h.{}.mlp.w2.scales", (_LAYER + "mlp.gate_proj.scales",)),
    Rule("transformer.h.{}.mlp.w2.g_idx", (_LAYER + "mlp.gate_proj.g_idx",)),
    Rule("transformer.h.{}.mlp.w2.bias", (_LAYER + "mlp.gate_proj.bias",)),
    Rule("transformer.h.{}.mlp.w1.weight", (_LAYER + "mlp.up_proj.weight",)),
    Rule("transformer.h.{}.mlp.w1.qweight", (_LAYER + "mlp.up_proj.qweight",)),
    Rule("transformer.h.{}.mlp.w1.qzeros", (_LAYER + "mlp.up_proj.qzeros",)),
    Rule("transformer.h.{}.mlp.w1.scales", (_LAYER + "mlp.up_proj.scales",)),
    Rule("transformer.h.{}.mlp.w1.g_idx", (_LAYER + "mlp.up_proj.g_idx",)),
    Rule("transformer.h.{}.mlp.w1.bias", (_LAYER + "mlp.up_proj.bias",)),
    Rule("transformer.h.{}.mlp.c_proj.weight", (_LAYER + "mlp.down_proj.weight",)),
    Rule("transformer.h.{}.mlp.c_proj.qweight", (_LAYER + "mlp.down_proj.qweight",)),
    Rule("transformer.h.{}.mlp.c_proj.qzeros", (_LAYER + "mlp.down_proj.qzeros",)),
    Rule("transformer.h.{}.mlp.c_proj.scales", (_LAYER + "mlp.down_proj.scales",)),
    Rule("transformer.h.{}.mlp.c_proj.g_idx", (_LAYER + "mlp.down_proj.g_idx",)),
    Rule("transformer.h.{}.mlp.c_proj.bias", (_LAYER + "mlp.down_proj.bias",)),
    Rule("transformer.ln_f.weight", (_TEXT + "norm.weight",)),
    Rule("lm_head.weight", ("lm_head.weight",)),
    # the vision tower
    Rule("transformer.visual.conv1.weight", (_EYE + "patch_embedding.weight",)),
    Rule("transformer.visual.positional_embedding", (_EYE + "position_embedding",)),
    Rule("transformer.visual.ln_pre.weight", (_EYE + "pre_layernorm.weight",)),
    Rule("transformer.visual.ln_pre.bias", (_EYE + "pre_layernorm.bias",)),
    Rule(
        "transformer.visual.transformer.resblocks.{}.ln_1.weight", (_BLOCK + "layer_norm1.weight",)
    ),
    Rule("transformer.visual.transformer.resblocks.{}.ln_1.bias", (_BLOCK + "layer_norm1.bias",)),
    # rows are interleaved per head here, and only here: q0 k0 v0 q1 k1 v1 …
    Rule(
        "transformer.visual.transformer.resblocks.{}.attn.in_proj.weight",
        (_LOOK + "q_proj.weight", _LOOK + "k_proj.weight", _LOOK + "v_proj.weight"),
        Op.HEADS,
    ),
    Rule(
        "transformer.visual.transformer.resblocks.{}.attn.in_proj.bias",
        (_LOOK + "q_proj.bias", _LOOK + "k_proj.bias", _LOOK + "v_proj.bias"),
        Op.HEADS,
    ),
    Rule(
        "transformer.visual.transformer.resblocks.{}.attn.out_proj.weight",
        (_LOOK + "out_proj.weight",),
    ),
    Rule(
        "transformer.visual.transformer.resblocks.{}.attn.out_proj.bias", (_LOOK + "out_proj.bias",)
    ),
    Rule(
        "transformer.visual.transformer.resblocks.{}.ln_2.weight", (_BLOCK + "layer_norm2.weight",)
    ),
    Rule("transformer.visual.transformer.resblocks.{}.ln_2.bias", (_BLOCK + "layer_norm2.bias",)),
    Rule(
        "transformer.visual.transformer.resblocks.{}.mlp.c_fc.weight", (_BLOCK + "mlp.fc1.weight",)
    ),
    Rule("transformer.visual.transformer.resblocks.{}.mlp.c_fc.bias", (_BLOCK + "mlp.fc1.bias",)),
    Rule(
        "transformer.visual.transformer.resblocks.{}.mlp.c_proj.weight",
        (_BLOCK + "mlp.fc2.weight",),
    ),
    Rule("transformer.visual.transformer.resblocks.{}.mlp.c_proj.bias", (_BLOCK + "mlp.fc2.bias",)),
    # the resampler; its attention stacks Q, K, V whole
    Rule("transformer.visual.attn_pool.query", (_JOIN + "query",)),
    Rule("transformer.visual.attn_pool.pos_embed", (_JOIN + "position_embedding",)),
    Rule("transformer.visual.attn_pool.kv_proj.weight", (_JOIN + "kv_proj.weight",)),
    Rule("transformer.visual.attn_pool.ln_q.weight", (_JOIN + "q_norm.weight",)),
    Rule("transformer.visual.attn_pool.ln_q.bias", (_JOIN + "q_norm.bias",)),
    Rule("transformer.visual.attn_pool.ln_kv.weight", (_JOIN + "kv_norm.weight",)),
    Rule("transformer.visual.attn_pool.ln_kv.bias", (_JOIN + "kv_norm.bias",)),
    Rule(
        "transformer.visual.attn_pool.attn.in_proj_weight",
        (_POOL + "q_proj.weight", _POOL + "k_proj.weight", _POOL + "v_proj.weight"),
        Op.ROWS,
    ),
    Rule(
        "transformer.visual.attn_pool.attn.in_proj_bias",
        (_POOL + "q_proj.bias", _POOL + "k_proj.bias", _POOL + "v_proj.bias"),
        Op.ROWS,
    ),
    Rule("transformer.visual.attn_pool.attn.out_proj.weight", (_POOL + "out_proj.weight",)),
    Rule("transformer.visual.attn_pool.attn.out_proj.bias", (_POOL + "out_proj.bias",)),
    Rule("transformer.visual.ln_post.weight", (_JOIN + "post_layernorm.weight",)),
    Rule("transformer.visual.ln_post.bias", (_JOIN + "post_layernorm.bias",)),
    # x @ proj in 2023, a Linear's (out, in) here
    Rule("transformer.visual.proj", (_JOIN + "output_proj.weight",), Op.TRANSPOSE),
)

WEIGHT_MAP = WeightMap(RULES)


def native_plan(infos: Mapping[str, TensorInfo], *, vision_heads: int) -> Sequence[Move]:
    """Plan 2023 names -> native names.

    Args:
        infos: every tensor of the checkpoint; not read.
        vision_heads: `visual.heads` of the 2023 config.

    Raises:
        UnmappedTensorError: a name that the table does not have.
        UnevenSplitError: a fused tensor that does not divide by three, or by the heads.
    """
    return WEIGHT_MAP.forward(infos, heads=vision_heads)


def original_plan(infos: Mapping[str, TensorInfo], *, vision_heads: int) -> Sequence[Move]:
    """Plan native names -> 2023 names: the exact inverse of `native_plan`.

    Args:
        infos: every tensor of the checkpoint; not read.
        vision_heads: `vision_config.num_attention_heads` of the native config.

    Raises:
        UnmappedTensorError: a name that the table does not have.
        MissingPartError: one of q, k, v is not there.
        UnequalPartsError: q, k, v differ in dtype or shape.
        UnevenSplitError: a part that the heads do not divide.
    """
    return WEIGHT_MAP.backward(infos, heads=vision_heads)

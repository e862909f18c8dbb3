"""Config.json of 2023 against the native one, in both directions; dicts only, no torch.

The original dict is kept whole under `original_config`, so that the way back gives it again. Keys
without a meaning today (`bf16`, `use_flash_attn`, `onnx_safe`, …) live there and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from qwen_vl.errors import ConfigError, UnsupportedArchitectureError

Config = dict[str, Any]
_T = TypeVar("_T", int, float, bool)

NATIVE_TYPE = "qwen_vl"
# special tokens are counted from the rank file's length
END_OF_TEXT_BEFORE_IMAGE = 214
_IMG, _IMG_END, _IMG_PAD = 214, 215, 216
_PROJECTOR_HEAD = 128
_VISION_EPS = 1e-6  # hard-coded in 2023, whatever layer_norm_epsilon says
_POSITIONS = 256


def is_original_layout(config: Mapping[str, Any]) -> bool:
    """Say whether a config.json is the 2023 one (True) or the native one (False).

    Raises:
        UnsupportedArchitectureError: any other model, Qwen without eyes included.
    """
    kind = config.get("model_type")
    if kind == NATIVE_TYPE:
        return False
    if kind == "qwen":
        if isinstance(config.get("visual"), Mapping):
            return True
        raise UnsupportedArchitectureError(
            "config.json is of a text-only Qwen: model_type 'qwen' without a visual section"
        )
    raise UnsupportedArchitectureError(f"config.json is of model_type {kind!r}, not of Qwen-VL")


def image_start_of(original: Mapping[str, Any]) -> int | None:
    """The id of `<img>` that a 2023 config names, if it does."""
    visual = original.get("visual")
    start = visual.get("image_start_id") if isinstance(visual, Mapping) else None
    return start if isinstance(start, int) else None


def ranks_before(image_start: int) -> int:
    """How many ranks a vocabulary has whose `<img>` has this id."""
    return image_start - _IMG


def to_native_config(original: Mapping[str, Any], *, n_ranks: int) -> Config:
    """Translate a 2023 config.json.

    Args:
        original: the parsed file; not modified.
        n_ranks: lines of the rank file, 151643 for the published one.

    Raises:
        UnsupportedArchitectureError: the config of another model.
        ConfigError: values that are missing, of the wrong type, or contradict each other.
    """
    if not is_original_layout(original):
        raise ConfigError("config.json is in the native layout already")
    start = image_start_of(original)
    if start is not None and start != n_ranks + _IMG:
        raise ConfigError(
            f"config.json puts <img> at id {start}, the rank file at {n_ranks + _IMG}",
            hint="The tokenizer and the model come from different repositories.",
        )
    text, vision = _text_config(original), _vision_config(original["visual"])
    width = _whole(original["visual"], "output_dim")
    if width != text["hidden_size"]:
        raise ConfigError(f"output_dim {width} is not hidden_size {text['hidden_size']}")
    native: Config = {
        "architectures": ["QwenVLForConditionalGeneration"],
        "model_type": NATIVE_TYPE,
        "dtype": _dtype_of(original),
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": vision,
        "n_queries": _whole(original["visual"], "n_queries", _POSITIONS),
        "output_dim": width,
        "projector_num_attention_heads": max(width // _PROJECTOR_HEAD, 1),
        "projector_layer_norm_eps": _VISION_EPS,
        "image_start_token_id": n_ranks + _IMG,
        "image_end_token_id": n_ranks + _IMG_END,
        "image_token_id": n_ranks + _IMG_PAD,
        "original_config": copy.deepcopy(dict(original)),
    }
    if original.get("quantization_config") is not None:
        native["quantization_config"] = copy.deepcopy(original["quantization_config"])
    return native


def to_original_config(native: Mapping[str, Any]) -> Config:
    """Translate back: the original dict, with dtype and quantization as they are now.

    Raises:
        ConfigError: a native config that does not carry its original.
    """
    kept = native.get("original_config")
    if not isinstance(kept, Mapping):
        raise ConfigError(
            "config.json has no original_config, so the 2023 one cannot be given back",
            hint="Convert from the original folder again; that keeps its config.",
        )
    original = copy.deepcopy(dict(kept))
    dtype = native.get("dtype")
    if dtype is not None and dtype != _dtype_of(original):
        original["torch_dtype"] = dtype
        flags = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        original.update({flag: dtype == name for flag, name in flags.items() if flag in original})
    if native.get("quantization_config") != original.get("quantization_config"):
        original.pop("quantization_config", None)
        if native.get("quantization_config") is not None:
            original["quantization_config"] = copy.deepcopy(native["quantization_config"])
    return original


def _text_config(original: Mapping[str, Any]) -> Config:
    hidden, heads = _whole(original, "hidden_size"), _whole(original, "num_attention_heads")
    head_dim = _whole(original, "kv_channels", 128)
    if heads * head_dim != hidden:
        raise ConfigError(f"{heads} heads of {head_dim} channels do not make {hidden}")
    width = _whole(original, "intermediate_size")
    if width % 2:
        raise ConfigError(f"intermediate_size {width} is odd; the MLP has half of it")
    biased = not _flag(original, "no_bias", True)
    return {
        "model_type": "qwen_vl_text",
        "vocab_size": _whole(original, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": width // 2,
        "num_hidden_layers": _whole(original, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _whole(original, "max_position_embeddings", 8192),
        "seq_length": _whole(original, "seq_length", 2048),
        "use_dynamic_ntk": _flag(original, "use_dynamic_ntk", True),
        "use_logn_attn": _flag(original, "use_logn_attn", True),
        "attention_bias": True,
        "attention_out_bias": biased,
        "mlp_bias": biased,
        "attention_dropout": _real(original, "attn_dropout_prob", 0.0),
        "embedding_dropout": _real(original, "emb_dropout_prob", 0.0),
        "initializer_range": _real(original, "initializer_range", 0.02),
        "rms_norm_eps": _real(original, "layer_norm_epsilon", 1e-6),
        "use_cache": _flag(original, "use_cache", True),
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _real(original, "rotary_emb_base", 10000),
            "partial_rotary_factor": _real(original, "rotary_pct", 1.0),
        },
    }


def _vision_config(visual: Mapping[str, Any]) -> Config:
    width, heads = _whole(visual, "width"), _whole(visual, "heads")
    if width % heads:
        raise ConfigError(f"{heads} vision heads do not divide a width of {width}")
    return {
        "model_type": "qwen_vl_vision",
        "hidden_size": width,
        "intermediate_size": int(width * _real(visual, "mlp_ratio", 4.0)),
        "num_hidden_layers": _whole(visual, "layers"),
        "num_attention_heads": heads,
        "image_size": _whole(visual, "image_size"),
        "patch_size": _whole(visual, "patch_size"),
        "num_channels": 3,
        "num_position_embeddings": _POSITIONS,
        "hidden_act": "gelu",
        "layer_norm_eps": _VISION_EPS,
    }


def _dtype_of(original: Mapping[str, Any]) -> str:
    dtype = original.get("torch_dtype") or original.get("dtype")
    if isinstance(dtype, str):
        return dtype.removeprefix("torch.")
    flags = (("bf16", "bfloat16"), ("fp16", "float16"))
    return next((name for flag, name in flags if original.get(flag) is True), "float32")


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, not a positive whole number")
    return value


def _real(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(f"config.json: {key} is {value!r}, not a number")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} is {value!r}, not true or false")
    return value

"""Tokenizer and processor files of the native layout, as plain dicts; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
KEPT_TOKENIZER = "original_tokenizer_config"  # null: there was no such file
# what means the same to the native tokenizer; everything else of the file only goes back
_TOKENIZER_KEYS = ("model_max_length", "padding_side", "truncation_side", "errors", "pad_token")


def native_side_files(
    tokenizer_config: Mapping[str, Any] | None, native: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Make the files that the layout of 2023 lacks: file name -> content.

    Args:
        tokenizer_config: the original tokenizer_config.json, kept for the way back; None without.
        native: the native config.json.
    """
    given = tokenizer_config or {}
    known = {key: given[key] for key in _TOKENIZER_KEYS if key in given}
    return {
        TOKENIZER_CONFIG: {
            "tokenizer_class": "QwenVLTokenizer",
            "processor_class": "QwenVLProcessor",
            "n_image_tokens": native["n_queries"],
            **known,
            KEPT_TOKENIZER: None if tokenizer_config is None else dict(tokenizer_config),
        },
        PREPROCESSOR: image_processor(native["vision_config"]["image_size"]),
        PROCESSOR: {"processor_class": "QwenVLProcessor"},
    }


def image_processor(image_size: int) -> dict[str, Any]:
    """The image processor's settings: bicubic to a square, CLIP's mean and deviation."""
    return {
        "image_processor_type": "QwenVLImageProcessor",
        "processor_class": "QwenVLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }

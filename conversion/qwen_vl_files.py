"""The files beside Qwen-VL's weights, in both layouts: config, tokenizer and processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conversion.errors import ConversionError, MissingFileError
from conversion.layouts import read_json_file
from conversion.rewriting import OpenedSnapshot
from model_store.paths import inside
from qwen_vl.config_map import to_native_config, to_original_config
from qwen_vl.ranks import read_ranks

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
RANKS = "qwen.tiktoken"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
KEPT_TOKENIZER = "original_tokenizer_config"  # null: there was no such file
# what means the same to the native tokenizer; everything else of the file only goes back
_TOKENIZER_KEYS = ("model_max_length", "padding_side", "truncation_side", "errors", "pad_token")


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Files made anew (path -> content) and files copied byte by byte."""

    written: Mapping[str, bytes]
    carried: tuple[str, ...]


def native_files(opened: OpenedSnapshot, config: Mapping[str, Any]) -> SideFiles:
    """Make the native layout's files from the original's.

    Args:
        opened: the original snapshot.
        config: its config.json.

    Raises:
        MissingFileError: no rank file.
        RankFileError: a rank file that cannot be used.
        ConfigError: a config that contradicts itself or the rank file.
    """
    if opened.manifest.entry(RANKS) is None:
        raise MissingFileError(RANKS)
    native = to_native_config(config, n_ranks=len(read_ranks(inside(opened.folder, RANKS))))
    written = {
        CONFIG: json_bytes(native),
        TOKENIZER_CONFIG: json_bytes(_native_tokenizer(_tokenizer_config(opened), native)),
        PREPROCESSOR: json_bytes(image_processor(native["vision_config"]["image_size"])),
        PROCESSOR: json_bytes({"processor_class": "QwenVLProcessor"}),
    }
    return SideFiles(written, _others(opened, written))


def original_files(opened: OpenedSnapshot, config: Mapping[str, Any]) -> SideFiles:
    """Give the original layout's files back from the native ones.

    Raises:
        ConfigError: a native config that does not carry its original.
        ConversionError: a tokenizer_config.json that was not made by `native_files`.
    """
    written = {CONFIG: json_bytes(to_original_config(config))}
    tokenizer = _tokenizer_config(opened) or {KEPT_TOKENIZER: None}
    kept = tokenizer.get(KEPT_TOKENIZER, ...)
    if kept is not None and not isinstance(kept, Mapping):
        raise ConversionError(
            f"{TOKENIZER_CONFIG} does not carry the original one",
            hint="Convert from the original folder again; that keeps its tokenizer config.",
        )
    if kept is not None:
        written[TOKENIZER_CONFIG] = json_bytes(kept)
    made_here = {TOKENIZER_CONFIG, PREPROCESSOR, PROCESSOR}
    others = tuple(path for path in _others(opened, written) if path not in made_here)
    return SideFiles(written, others)


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


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Serialise with sorted keys, so that equal values are equal files.

    Raises:
        ConversionError: NaN, infinity, or text that is no Unicode.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        return (text + "\n").encode("utf-8")
    except ValueError as error:
        raise ConversionError(f"a config cannot be written as JSON: {error}") from error


def _tokenizer_config(opened: OpenedSnapshot) -> dict[str, Any] | None:
    if opened.manifest.entry(TOKENIZER_CONFIG) is None:
        return None
    return read_json_file(inside(opened.folder, TOKENIZER_CONFIG))


def _native_tokenizer(
    original: Mapping[str, Any] | None, native: Mapping[str, Any]
) -> dict[str, Any]:
    known = {key: original[key] for key in _TOKENIZER_KEYS if key in original} if original else {}
    return {
        "tokenizer_class": "QwenVLTokenizer",
        "processor_class": "QwenVLProcessor",
        "n_image_tokens": native["n_queries"],
        **known,
        KEPT_TOKENIZER: original,
    }


def _others(opened: OpenedSnapshot, written: Mapping[str, bytes]) -> tuple[str, ...]:
    return tuple(path for path in opened.companions() if path not in written)

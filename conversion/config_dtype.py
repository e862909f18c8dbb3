"""What a config.json says of its weights' dtype and quantization, and how to say it anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("dtype", "torch_dtype")
# switches of 2023: at most one is true
_FLAGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# the config of 2023 inside the native one is brought up to date when it is given back
_NOT_NESTED = frozenset({"original_config", "quantization_config"})


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config that names `dtype` ("bfloat16", …) wherever it named one."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in _KEYS and isinstance(value, str):
            changed[key] = dtype
        elif key in _FLAGS and isinstance(value, bool):
            changed[key] = _FLAGS[key] == dtype
        elif key.endswith("_config") and key not in _NOT_NESTED and isinstance(value, Mapping):
            changed[key] = with_dtype(value, dtype)
        else:
            changed[key] = value
    return changed


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of plain weights."""
    return {key: value for key, value in config.items() if key != "quantization_config"}

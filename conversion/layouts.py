"""Which layout a checkpoint is in, and whether it holds every tensor that its config promises."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from conversion.errors import IncompleteError, MissingFileError, NotQwenVLError
from model_store.canonical import parse_json
from model_store.errors import StoreError
from qwen_vl.config_map import is_original_layout
from qwen_vl.errors import UnsupportedArchitectureError
from qwen_vl.weight_map import RULES

MAX_JSON = 10_000_000
_MOST_LAYERS = 10_000

_DECODER = "transformer.h.{}."
_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
_QUANTIZABLE = frozenset(_DECODER + module for module in _LINEARS)
_PACKED = frozenset({"qweight", "qzeros", "scales", "g_idx"})
# in the bf16 model only when no_bias is false; AutoGPTQ writes them always, other tools never
_BIASES = frozenset(_DECODER + module + ".bias" for module in _LINEARS[1:])
_KEY_VALUE = "transformer.visual.attn_pool.kv_proj.weight"


class Layout(StrEnum):
    """How a checkpoint's tensors are named."""

    ORIGINAL = "original"  # Qwen-VL as published in 2023
    NATIVE = "native"
    OTHER = "other"


def read_json_file(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        MissingFileError: no such file.
        StoreError: too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise MissingFileError(path.name)
    if path.stat().st_size > MAX_JSON:
        raise StoreError(f"{path} is too large for a configuration")
    value = parse_json(path.read_bytes(), name=str(path))
    if not isinstance(value, dict):
        raise StoreError(f"{path} is no JSON object")
    return value


def layout_of(config: Mapping[str, Any]) -> Layout:
    """Tell the layout from a config.json; text-only Qwen-1 is `OTHER`, it has no `visual`."""
    try:
        return Layout.ORIGINAL if is_original_layout(config) else Layout.NATIVE
    except UnsupportedArchitectureError:
        return Layout.OTHER


def vision_heads(config: Mapping[str, Any]) -> int:
    """Attention heads of the vision tower, from a config.json of either layout.

    Raises:
        NotQwenVLError: another architecture, or no usable number.
    """
    match layout_of(config):
        case Layout.ORIGINAL:
            return _count(config, "visual", "heads")
        case Layout.NATIVE:
            return _count(config, "vision_config", "num_attention_heads")
        case Layout.OTHER:
            raise NotQwenVLError(f"config.json has model_type {config.get('model_type')!r}")


def check_complete(names: Collection[str], config: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds exactly the tensors that its config asks for.

    Args:
        names: tensor names of the original layout.
        config: the 2023 config.json.

    Raises:
        IncompleteError: tensors are missing, or there are some beyond the config.
        NotQwenVLError: the config lacks a number, or has an absurd one.
    """
    present = frozenset(names)
    required: set[str] = set()
    allowed: set[str] = set()
    for name, need in _expected(present, config):
        (required if need else allowed).add(name)
    missing = sorted(required - present)
    if missing:
        raise IncompleteError("config.json promises tensors that are not there", missing)
    extra = sorted(present - required - allowed)
    if extra:
        raise IncompleteError("tensors beyond what config.json describes", extra)


def _expected(present: Collection[str], config: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield every name that may be there, and whether it must."""
    layers, blocks = _count(config, "num_hidden_layers"), _count(config, "visual", "layers")
    projects = _count(config, "visual", "width") != _count(config, "visual", "output_dim")
    for rule in RULES:
        repeats = 1
        if "{}" in rule.source:
            repeats = layers if rule.source.startswith(_DECODER) else blocks
        module, _, kind = rule.source.rpartition(".")
        for index in range(repeats):
            name = rule.source.format(index)
            if module in _QUANTIZABLE:
                packed = f"{module.format(index)}.qweight" in present
                if rule.source in _BIASES:
                    needed = not config.get("no_bias", True) and not packed
                    if needed or packed:
                        yield name, needed
                elif kind == "bias" or packed == (kind in _PACKED):
                    yield name, True
            elif rule.source != _KEY_VALUE or projects:
                yield name, True


def _count(config: Mapping[str, Any], *keys: str) -> int:
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if type(value) is not int or value < 1:
        raise NotQwenVLError(f"config.json: {'.'.join(keys)} is {value!r}, not a count")
    if keys[-1] in ("layers", "num_hidden_layers") and value > _MOST_LAYERS:
        raise NotQwenVLError(f"config.json: {'.'.join(keys)} is {value}")
    return value

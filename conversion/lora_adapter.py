"""LoRA adapters as PEFT saves them: read, checked, nothing of them run.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors` or `.bin`, whose keys
are `base_model.model.<module>.lora_A.weight` (rank, in) and `….lora_B.weight` (out, rank).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion.errors import AdapterError
from conversion.float_casts import CASTABLE
from conversion.layouts import Layout, read_json_file
from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.files import sha256_file
from model_store.tensors import RawTensor

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight\Z")
_SAVED = re.compile(r"(?P<module>.+?)(\.modules_to_save)?(\.default)?\.(?P<kind>weight|bias)\Z")
# variants whose merge is another formula
_VARIANTS = (
    "use_dora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters",
    "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora",
)  # fmt: skip
_LITERAL = re.compile(r"\^?[A-Za-z0-9_.\-]+\$?\Z")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """What an adapter adds to one linear layer: `scaling · B @ A`."""

    a: RawTensor  # (rank, in)
    b: RawTensor  # (out, rank)
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory: its modules by name, and the tensors that it replaces whole."""

    config: Mapping[str, Any]
    modules: Mapping[str, LoraModule]
    saved: Mapping[str, RawTensor]
    digests: Mapping[str, str]  # file -> sha256

    @property
    def transposed(self) -> bool:
        """Whether the base stores these weights (in, out)."""
        return bool(self.config["fan_in_fan_out"])

    @property
    def layout(self) -> Layout:
        """The layout that its names are of."""
        names = (*self.modules, *self.saved)
        if any(name.startswith("transformer.") for name in names):
            return Layout.ORIGINAL
        native = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.")
        return Layout.NATIVE if any(name.startswith(native) for name in names) else Layout.OTHER


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's folder.

    Raises:
        AdapterError: another kind of adapter, unknown keys, or tensors that contradict the config.
        CheckpointError: weights that cannot be read.
        MissingFileError: no adapter_config.json.
    """
    config = read_json_file(folder / ADAPTER_CONFIG)
    _check_config(config)
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise AdapterError(f"{folder} has no {' or '.join(ADAPTER_WEIGHTS)}")
    with open_checkpoint(weights) as checkpoint:
        sides, saved = _sorted_keys(checkpoint, config)
    modules = {name: _module(name, sides[name], config) for name in sides}
    if not modules and not saved:
        raise AdapterError(f"{weights} holds no LoRA matrices")
    files = (folder / ADAPTER_CONFIG, weights)
    return Adapter(config, modules, saved, {path.name: sha256_file(path) for path in files})


def scaling_of(alpha: float, rank: int, *, rslora: bool) -> float:
    """The factor before B @ A."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def alpha_of(scaling: float, rank: int, *, rslora: bool) -> float:
    """The `lora_alpha` that gives a factor: the inverse of `scaling_of`."""
    alpha = scaling * (math.sqrt(rank) if rslora else rank)
    return int(alpha) if alpha == int(alpha) else alpha


def _check_config(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"adapter_config.json has peft_type {kind!r}, not 'LORA'")
    if type(config.get("fan_in_fan_out")) is not bool:
        raise AdapterError(
            "adapter_config.json does not say fan_in_fan_out: which side is which is unknown",
            hint="Add it: false for torch's Linear (every Qwen), true for GPT-2's Conv1D.",
        )
    variant = next((key for key in _VARIANTS if config.get(key)), None)
    if variant is not None:
        raise AdapterError(f"adapter_config.json has {variant}: this is not plain LoRA")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"adapter_config.json has bias {config['bias']!r}: not 'none'")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, Mapping) or not all(
            isinstance(name, str) and _LITERAL.match(name) and _is_number(value)
            for name, value in pattern.items()
        ):
            raise AdapterError(f"{key} of adapter_config.json is not a table of module names")
    if type(config.get("r")) is not int or not _is_number(config.get("lora_alpha")):
        raise AdapterError("adapter_config.json has no usable r and lora_alpha")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value)) and value > 0  # type: ignore[arg-type, operator]


def _sorted_keys(
    checkpoint: Checkpoint, config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, RawTensor]], dict[str, RawTensor]]:
    sides: dict[str, dict[str, RawTensor]] = {}
    saved: dict[str, RawTensor] = {}
    for key in checkpoint.names():
        name = key.removeprefix(PREFIX)
        lora = _KEY.match(name)
        whole = _SAVED.match(name)
        if name == key:
            raise AdapterError(f"unknown key {key!r}: it does not start with {PREFIX!r}")
        if lora is not None:
            sides.setdefault(lora["module"], {})[lora["side"]] = _kept(checkpoint.read(key))
        elif whole is not None and _is_saved(whole["module"], config):
            saved[f"{whole['module']}.{whole['kind']}"] = _kept(checkpoint.read(key))
        else:
            raise AdapterError(f"unknown key {key!r}: neither lora_A, lora_B nor modules_to_save")
    return sides, saved


def _kept(tensor: RawTensor) -> RawTensor:
    if tensor.dtype not in CASTABLE:
        raise AdapterError(f"an adapter's tensor is {tensor.dtype}, not a float")
    return RawTensor(tensor.dtype, tensor.shape, memoryview(bytes(tensor.data)))


def _is_saved(module: str, config: Mapping[str, Any]) -> bool:
    listed = config.get("modules_to_save") or ()
    return isinstance(listed, list) and any(_ends(module, str(name)) for name in listed)


def _module(name: str, sides: Mapping[str, RawTensor], config: Mapping[str, Any]) -> LoraModule:
    if sides.keys() != {"A", "B"}:
        raise AdapterError(f"{name} has lora_{''.join(sides)} without its other side")
    a, b = sides["A"], sides["B"]
    rank = _patterned(name, config, "rank_pattern", config["r"])
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == rank:
        raise AdapterError(f"{name}: A {a.shape} and B {b.shape} are not of rank {rank}")
    alpha = _patterned(name, config, "alpha_pattern", config["lora_alpha"])
    rslora = bool(config.get("use_rslora", False))
    return LoraModule(a, b, scaling_of(float(alpha), a.shape[0], rslora=rslora))


def _patterned(name: str, config: Mapping[str, Any], key: str, default: float) -> float:
    pattern: Mapping[str, float] = config.get(key) or {}
    return next((value for part, value in pattern.items() if _ends(name, part)), default)


def _ends(module: str, part: str) -> bool:
    plain = part.strip("^$")
    return module == plain or (not part.startswith("^") and module.endswith(f".{plain}"))

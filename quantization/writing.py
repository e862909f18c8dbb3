"""Write what was quantized as a snapshot: packed tensors, untouched ones, configs, notices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from model_store.change_notice import CHANGES, changes_text
from model_store.files import copy_file, write_bytes
from model_store.gptq_format import PackedLinear, Version, pack
from model_store.manifest import Step
from model_store.paths import inside
from model_store.shard_writer import FORMAT_PT, ShardWriter
from model_store.tensors import from_bits
from quantization.errors import GroupSizeError
from quantization.options import GptqConfig
from quantization.solver import QuantizedLinear
from quantization.source import SourceSnapshot
from qwen_vl.tokenizer_json import TOKENIZER_JSON

FORMAT: Version = "gptq"  # version 1: what every reader understands
_WORD = 32
_MAX_SHARD = 5_000_000_000

PlannedTensors = list[tuple[str, str, tuple[int, ...]]]


def check_shapes(layers: Mapping[str, nn.Linear], config: GptqConfig) -> None:
    """Find a layer that cannot be packed before any work is done.

    Raises:
        GroupSizeError: naming it.
    """
    for name, linear in layers.items():
        columns, rows = linear.in_features, linear.out_features
        if columns % config.group_of(columns):
            raise GroupSizeError(f"{name} has {columns} inputs: no multiple of {config.group_size}")
        if columns * config.bits % _WORD or rows * config.bits % _WORD:
            raise GroupSizeError(
                f"{name}, {columns} x {rows}, does not fill words of {_WORD} bits",
                hint=f"Layer sizes must be multiples of {_WORD // config.bits} at {config.bits} "
                "bits.",
            )


def plan_tensors(
    infos: Mapping[str, Any], layers: Mapping[str, nn.Linear], config: GptqConfig
) -> PlannedTensors:
    """Plan the new weight files: the source's order, each quantized weight become four tensors."""
    plan: PlannedTensors = []
    for name, info in infos.items():
        linear = layers.get(name.removesuffix(".weight"))
        if linear is None or not name.endswith(".weight"):
            plan.append((name, info.dtype, tuple(info.shape)))
            continue
        columns, rows = linear.in_features, linear.out_features
        groups, stem = columns // config.group_of(columns), name.removesuffix("weight")
        plan += [
            (stem + "qweight", "I32", (columns * config.bits // _WORD, rows)),
            (stem + "qzeros", "I32", (groups, rows * config.bits // _WORD)),
            (stem + "scales", "F16", (groups, rows)),
            (stem + "g_idx", "I32", (columns,)),
        ]
    return plan


def open_writer(building: Path, plan: PlannedTensors, notice: str) -> ShardWriter:
    """Open the weight files; the notice of change goes into every header."""
    metadata = {**FORMAT_PT, "notice_of_change": notice}
    return ShardWriter(building, plan, max_shard_bytes=_MAX_SHARD, metadata=metadata)


def write_linear(writer: ShardWriter, name: str, result: QuantizedLinear, *, bits: int) -> None:
    """Pack one linear and write its four tensors."""
    codes, scales, zeros, g_idx = (part.cpu().numpy() for part in result)
    packed: PackedLinear = pack(codes, zeros, scales, g_idx, bits=bits, version=FORMAT)
    for part, dtype in (("qweight", "I32"), ("qzeros", "I32"), ("scales", "F16"), ("g_idx", "I32")):
        writer.add(f"{name}.{part}", from_bits(dtype, getattr(packed, part)))


def weight_digest(weight: Tensor | np.ndarray[Any, Any]) -> str:
    """sha256 of a dequantized weight, (rows, columns) float32: to compare memory with disk."""
    array = weight.cpu().numpy() if isinstance(weight, Tensor) else weight
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").data).hexdigest()


def quantization_config(
    config: GptqConfig, model: nn.Module, layers: Sequence[str], tool: str
) -> dict[str, Any]:
    """The `quantization_config` of config.json, as AutoGPTQ and its heirs read it.

    `desc_act` is false whatever the order columns were solved in: the files hold groups of
    neighbours, and readers need not permute anything.
    """
    inside_layers = list(dict.fromkeys(_inside_layer(name) for name in layers))
    return {
        "quant_method": "gptq",
        "checkpoint_format": FORMAT,
        "bits": config.bits,
        "group_size": config.group_size,
        "sym": True,
        "desc_act": False,
        "static_groups": config.act_order == "static",
        "true_sequential": True,
        "damp_percent": config.damping,
        "lm_head": False,
        "modules_in_block_to_quantize": [[name] for name in inside_layers],
        # engines match the names above in vision towers too, unless told otherwise
        "dynamic": {f"-:.*{part}.*": {} for part in _other_parts(model, layers)},
        "meta": {
            "quantizer": tool,
            "method": config.method,
            "act_order": config.act_order,
            "scale_search": config.scale_search,
        },
    }


def _inside_layer(name: str) -> str:
    parts = name.split(".")
    index = next(n for n in reversed(range(len(parts))) if parts[n].isdigit())
    return ".".join(parts[index + 1 :])


def _other_parts(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The model's parts (`vision_tower`, …) that have linears, none of them quantized."""
    quantized = set(layers)
    touched = {name.split(".")[1] for name in quantized if "." in name}
    found = {
        name.split(".")[1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.count(".") >= 1
    }
    return sorted(found - touched)


def write_side_files(
    building: Path, source: SourceSnapshot, quantization: Mapping[str, Any], step: Step, notice: str
) -> None:
    """Write everything but the weights and the manifest."""
    for path in source.carried():
        copy_file(inside(source.folder, path), inside(building, path))
    config = {**source.config, "quantization_config": dict(quantization)}
    written = {
        **source.side_files(),
        "config.json": config,
        "quantize_config.json": dict(quantization),
    }
    files = {name: _json_bytes(value) for name, value in written.items()}
    if (tokenizer := source.tokenizer_json()) is not None:
        files[TOKENIZER_JSON] = tokenizer
    for name, data in files.items():
        write_bytes(building / name, data)
    write_bytes(building / CHANGES, _changes(source, step, notice, sorted(files)))


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8")


def _changes(source: SourceSnapshot, step: Step, notice: str, written: Sequence[str]) -> bytes:
    notes = [notice, *[f"`{path}` was written anew." for path in written]]
    return changes_text(source.folder, source.manifest, step, notes)

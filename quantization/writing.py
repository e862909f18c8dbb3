"""Write what was quantized as a snapshot: packed tensors, untouched ones, configs, notices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from model_store.change_notice import CHANGES, changes_text
from model_store.files import copy_file, write_bytes
from model_store.manifest import Step
from model_store.paths import inside
from model_store.shard_writer import FORMAT_PT, ShardWriter
from quantization.errors import GroupSizeError
from quantization.options import GptqConfig
from quantization.source import Source

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_WORD = 32
_MULTIPLE = 32  # of both sizes: what AutoGPTQ's packer and the kernels need
_MAX_SHARD = 5_000_000_000

PlannedTensors = list[tuple[str, str, tuple[int, ...]]]


def check_shapes(layers: Mapping[str, nn.Linear], config: GptqConfig) -> None:
    """Find a layer that cannot be packed before any work is done.

    A last group that is shorter than the others could be written, but readers disagree about it.

    Raises:
        GroupSizeError: naming it.
    """
    for name, linear in layers.items():
        columns, rows, own = linear.in_features, linear.out_features, config.for_module(name)
        if columns % own.group_of(columns):
            raise GroupSizeError(f"{name} has {columns} inputs: no multiple of {own.group_size}")
        if columns % _MULTIPLE or rows % _MULTIPLE:
            raise GroupSizeError(
                f"{name}, {columns} x {rows}, does not fill words of {_WORD} bits",
                hint=f"Both sizes must be multiples of {_MULTIPLE}; leave it out with --exclude.",
            )


def plan_tensors(
    infos: Mapping[str, Any],
    layers: Mapping[str, nn.Linear],
    config: GptqConfig,
    *,
    zero_biases: bool = False,
) -> PlannedTensors:
    """Plan the new weight files: the source's order, each quantized weight become four tensors.

    Args:
        infos: the source's tensors.
        layers: what is quantized.
        config: widths and groups.
        zero_biases: give every quantized linear a bias, which AutoGPTQ's loader expects.
    """
    plan: PlannedTensors = []
    for name, info in infos.items():
        stem, _, leaf = name.rpartition(".")
        linear = layers.get(stem)
        if linear is None or leaf != "weight":
            plan.append((name, info.dtype, tuple(info.shape)))
            continue
        own = config.for_module(stem)
        columns, rows = linear.in_features, linear.out_features
        groups = columns // own.group_of(columns)
        plan += [
            (f"{stem}.qweight", "I32", (columns * own.bits // _WORD, rows)),
            (f"{stem}.qzeros", "I32", (groups, rows * own.bits // _WORD)),
            (f"{stem}.scales", "F16", (groups, rows)),
            (f"{stem}.g_idx", "I32", (columns,)),
        ]
        if zero_biases and f"{stem}.bias" not in infos:
            plan.append((f"{stem}.bias", "F16", (rows,)))
    return plan


def open_writer(building: Path, plan: PlannedTensors, notice: str) -> ShardWriter:
    """Open the weight files; the notice of change goes into every header."""
    metadata = {**FORMAT_PT, "notice_of_change": notice}
    return ShardWriter(building, plan, max_shard_bytes=_MAX_SHARD, metadata=metadata)


def weight_digest(weight: Tensor | np.ndarray[Any, Any]) -> str:
    """sha256 of a dequantized weight, (rows, columns) float32: to compare memory with disk."""
    array = weight.cpu().numpy() if isinstance(weight, Tensor) else weight
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f4").data).hexdigest()


def write_side_files(
    building: Path,
    source: Source,
    written: Mapping[str, Any],
    step: Step,
    notice: str,
    *,
    layout: str = "native",
) -> None:
    """Write everything but the weights and the manifest.

    Args:
        building: the new folder.
        source: what was quantized.
        written: file name -> its JSON value or bytes.
        step: for the notice of change.
        notice: what changed, in one sentence.
        layout: for the loaders of 2023 the model's own code comes along; nothing here runs it.
    """
    code = [entry.path for entry in source.manifest.files if entry.path.endswith(".py")]
    for path in [*source.carried(), *(code if layout == "original" else ())]:
        if path not in written:
            copy_file(inside(source.folder, path), inside(building, path))
    for name, value in written.items():
        write_bytes(building / name, value if isinstance(value, bytes) else json_bytes(value))
    notes = [notice, *[f"`{path}` was written anew." for path in sorted(written)]]
    changes = changes_text(source.folder, source.manifest, step, notes)
    write_bytes(building / CHANGES, changes)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """A JSON file as we write it: sorted, indented, one newline at the end."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("utf-8")

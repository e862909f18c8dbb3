"""Merge a LoRA adapter into its base: W + scaling · B @ A in float32, then the base's dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.casting import CastMove
from conversion.errors import AdapterError, QuantizedError
from conversion.float_casts import CASTABLE, narrow, widen
from conversion.layouts import Layout, layout_of, read_json_file, vision_heads
from conversion.lora_adapter import Adapter, LoraModule, read_adapter
from conversion.lora_layouts import to_layout
from conversion.options import MergeLoraOptions, parse_size
from conversion.qwen_vl_files import CONFIG, SideFiles
from conversion.resuming import Tally
from conversion.rewriting import OpenedSnapshot, Result, Rewrite, TensorMove
from conversion.running import run_draft
from conversion.steps import format_of, rewrite_of, step_of
from model_store.errors import UsageError
from model_store.progress import Progress
from model_store.tensors import RawTensor, from_bits
from model_store.weight_rules import TensorSpec

_CHUNK = 1 << 20  # elements of a weight that are in memory as float64


@dataclass(frozen=True, slots=True)
class MergeMove:
    """One weight with its adapter added."""

    source: str
    target: TensorSpec
    module: LoraModule
    transposed: bool
    tally: Tally

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[TensorSpec, ...]:
        return (self.target,)

    def apply(self, read: Callable[[str], RawTensor]) -> list[RawTensor]:
        base = read(self.source).bits()
        left, right = _wide(self.module.b), _wide(self.module.a)
        if self.transposed:
            left, right = right.T, left.T
        made = np.empty_like(base)
        step = max(_CHUNK // max(base.shape[1], 1), 1)
        overflowed = 0
        for start in range(0, base.shape[0], step):
            rows = slice(start, start + step)
            # float64 products: their order, which differs by machine, is lost in rounding
            added = (left[rows] @ right * self.module.scaling).astype(np.float32)
            added += widen(np.ascontiguousarray(base[rows]), self.target.dtype)
            overflowed += narrow(added.reshape(-1), self.target.dtype, into=made[rows].reshape(-1))
        self.tally.add(self.target.name, overflowed)
        return [from_bits(self.target.dtype, made)]


@dataclass(frozen=True, slots=True)
class ReplaceMove:
    """A tensor that the adapter's training saved whole, in place of the base's."""

    target: TensorSpec
    tensor: RawTensor
    tally: Tally

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.target.name,)

    @property
    def targets(self) -> tuple[TensorSpec, ...]:
        return (self.target,)

    def apply(self, read: Callable[[str], RawTensor]) -> list[RawTensor]:
        move = CastMove("", self.target, self.tally)
        return move.apply(lambda _: self.tensor)


def merge_lora(
    folder: Path, target: Path, options: MergeLoraOptions, *, progress: Progress | None = None
) -> Result:
    """Write a base snapshot with an adapter merged into it.

    Raises:
        QuantizedError: the base is quantized.
        AdapterError: the adapter cannot be used, or is of another model.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_merge_lora, options, progress=progress)


def draft_merge_lora(opened: OpenedSnapshot, options: MergeLoraOptions) -> Rewrite:
    """Plan the merge; see `merge_lora`."""
    size = parse_size(options.max_shard_size)
    if not (options.adapter / "adapter_config.json").is_file():
        raise UsageError(
            f"--adapter {options.adapter} is no adapter's folder",
            hint="Name the folder that holds adapter_config.json.",
        )
    place = opened.folder / CONFIG
    config = read_json_file(place) if place.is_file() else {}
    _check_plain(opened, config)
    adapter = _fitting(read_adapter(options.adapter), config)
    tally = Tally()
    moves = _moves(opened, adapter, tally)
    facts = {
        "adapter": dict(sorted(adapter.digests.items())),
        "merged": len(adapter.modules),
        "replaced": sorted(adapter.saved),
    }
    step = step_of("merge_lora", options, opened, moves, facts)
    summary = (
        f"Changed by modelferry: a LoRA adapter was merged into {len(adapter.modules)} weights"
        + (f", and {len(adapter.saved)} were replaced." if adapter.saved else ".")
    )
    files = SideFiles({}, opened.companions())
    return replace(rewrite_of(step, moves, format_of(opened), size, files, summary), tally=tally)


def _check_plain(opened: OpenedSnapshot, config: dict[str, Any]) -> None:
    packed = next((n for n in opened.checkpoint.names() if n.endswith(".qweight")), None)
    if packed is not None or config.get("quantization_config") is not None:
        raise QuantizedError(
            f"the base is quantized ({packed or 'quantization_config'}): an adapter cannot be "
            "merged into rounded weights",
            hint="Merge into the bf16 base that it was made of, then quantize: "
            "conversion.merge_lora, then quantization.gptq.",
        )


def _fitting(adapter: Adapter, config: dict[str, Any]) -> Adapter:
    """The adapter in its base's layout."""
    layout = layout_of(config)
    if Layout.OTHER in (layout, adapter.layout):
        return adapter
    return to_layout(adapter, layout, vision_heads=vision_heads(config))


def _moves(opened: OpenedSnapshot, adapter: Adapter, tally: Tally) -> list[TensorMove]:
    infos = opened.infos()
    weights = {f"{name}.weight": module for name, module in adapter.modules.items()}
    for name in (*weights, *adapter.saved):
        if name not in infos:
            raise AdapterError(f"the base has no tensor {name!r}, which the adapter changes")
    moves: list[TensorMove] = []
    for name, info in infos.items():
        spec = TensorSpec(name, info.dtype, info.shape)
        module, whole = weights.get(name), adapter.saved.get(name)
        if module is not None and whole is not None:
            raise AdapterError(f"the adapter both adds to {name!r} and replaces it")
        if (module is not None or whole is not None) and info.dtype not in CASTABLE:
            raise AdapterError(f"{name} is {info.dtype}: nothing can be merged into that")
        if module is not None:
            shape = (module.b.shape[0], module.a.shape[1])
            if info.shape != (shape[::-1] if adapter.transposed else shape):
                raise AdapterError(f"{name} has shape {info.shape}, the adapter's is {shape}")
            moves.append(MergeMove(name, spec, module, adapter.transposed, tally))
        elif whole is not None:
            if whole.shape != info.shape:
                raise AdapterError(f"{name} has shape {info.shape}, the adapter's {whole.shape}")
            moves.append(ReplaceMove(spec, whole, tally))
        else:
            moves.append(CastMove(name, spec, tally))
    return moves


def _wide(tensor: RawTensor) -> NDArray[np.float64]:
    return widen(tensor.bits(), tensor.dtype).astype(np.float64)

"""Merge a LoRA adapter into its base: W + scaling · B @ A in float32, then the base's dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.casting import CastMove, cast_source
from conversion.errors import AdapterError, QuantizedError
from conversion.float_casts import CASTABLE, narrow, widen
from conversion.layouts import Layout, layout_of, read_json_file, vision_heads
from conversion.lora_adapter import Adapter, LoraModule, read_adapter
from conversion.lora_layouts import to_layout
from conversion.made_tensor import MadeTensor
from conversion.opened import OpenedSnapshot
from conversion.options import MergeLoraOptions, parse_size
from conversion.qwen_vl_files import CONFIG, SideFiles
from conversion.rewriting import Result, Rewrite, TensorMove
from conversion.running import run_draft
from conversion.steps import format_of, rewrite_of, step_of
from conversion.tally import Tally
from model_store.errors import UsageError
from model_store.progress import Progress
from model_store.tensor_sources import TensorSource
from model_store.tensors import ITEM_SIZE, RawTensor
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

    @property
    def keeps_bytes(self) -> bool:
        return False

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]:
        base, dtype = source(self.source), self.target.dtype
        left, right = _wide(self.module.b), _wide(self.module.a)
        if self.transposed:
            left, right = right.T, left.T
        rows, columns = self.target.shape
        width = columns * ITEM_SIZE[dtype]

        def make(first: int, last: int) -> memoryview:
            data = memoryview(bytearray((last - first) * width))
            base.read_into(data, first * width)
            bits = RawTensor(dtype, (last - first, columns), data).bits()
            # float64 products: their order, which differs by machine, is lost in rounding
            added = (left[first:last] @ right * self.module.scaling).astype(np.float32)
            added += widen(bits, dtype)
            made = np.empty_like(bits).reshape(-1)
            self.tally.overflow(self.target.name, narrow(added.reshape(-1), dtype, into=made))
            return made.view(np.uint8).data

        at_once = _CHUNK // max(columns, 1)
        return [MadeTensor(self.target, units=rows, at_once=at_once, make=make)]


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

    @property
    def keeps_bytes(self) -> bool:
        return False

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]:
        if self.tensor.dtype == self.target.dtype:
            return [self.tensor]
        return [cast_source(self.tensor, self.target, self.tally)]


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
            moves.append(CastMove(name, info.dtype, spec, tally))
    return moves


def _wide(tensor: RawTensor) -> NDArray[np.float64]:
    return widen(tensor.bits(), tensor.dtype).astype(np.float64)

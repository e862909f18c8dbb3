"""Carry a LoRA adapter between Qwen-VL's two layouts.

A row split of W = B @ A is a row split of B, so `c_attn` comes apart exactly: q, k and v share A.
Backwards, parts with one A fuse exactly; other parts are stacked (A) and put on a block diagonal
(B), which multiplies out to the same matrix, with the ranks added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from conversion.errors import AdapterError
from conversion.layouts import Layout
from conversion.lora_adapter import Adapter, LoraModule
from model_store.tensors import RawTensor, TensorInfo, from_bits
from model_store.weight_rules import Move, Op, Rule, TensorSpec, split_index
from qwen_vl.weight_map import RULES, WEIGHT_MAP, native_plan, original_plan

_BY_TARGET = {target: rule for rule in RULES for target in rule.targets}


def to_layout(adapter: Adapter, layout: Layout, *, vision_heads: int | None = None) -> Adapter:
    """Return the adapter with the other layout's names.

    Args:
        adapter: of Qwen-VL.
        layout: the one wanted.
        vision_heads: heads of the vision tower; only an adapter of its attention needs them.

    Raises:
        AdapterError: a module that has no linear counterpart, or parts that do not fit together.
        WeightMapError: a module that Qwen-VL does not have.
    """
    if adapter.layout is layout:
        return adapter
    heads = vision_heads or 0
    if layout is Layout.NATIVE:
        modules = _split(adapter.modules, heads)
        saved = _moved_whole(adapter.saved, native=True, heads=heads)
    else:
        modules = _fused(adapter.modules, heads)
        saved = _moved_whole(adapter.saved, native=False, heads=heads)
    return Adapter(adapter.config, modules, saved, adapter.digests)


def _split(modules: Mapping[str, LoraModule], heads: int) -> dict[str, LoraModule]:
    made: dict[str, LoraModule] = {}
    for name, module in modules.items():
        _check_heads(name, heads)
        info = {f"{name}.weight": TensorInfo(module.b.dtype, module.b.shape)}
        (move,) = WEIGHT_MAP.forward(info, heads=heads)
        if move.op is Op.TRANSPOSE:
            raise AdapterError(f"{name} is no linear layer")
        for target, b in zip(move.targets, move.apply(lambda _, m=module: m.b), strict=True):  # type: ignore[misc]
            made[target.name.removesuffix(".weight")] = LoraModule(module.a, b, module.scaling)
    return made


def _check_heads(name: str, heads: int) -> None:
    if "resblocks" in name and name.endswith("in_proj") and not heads:
        raise AdapterError(f"{name} is interleaved per head, and how many heads is unknown here")


def _fused(modules: Mapping[str, LoraModule], heads: int) -> dict[str, LoraModule]:
    made: dict[str, LoraModule] = {}
    for name in modules:
        template, index = split_index(f"{name}.weight")
        rule = _BY_TARGET.get(template)
        if rule is None or rule.op is Op.TRANSPOSE:
            raise AdapterError(f"Qwen-VL has no linear layer {name!r}")
        fused = rule.source.format(index).removesuffix(".weight")
        if fused not in made:
            parts = [
                modules.get(target.format(index).removesuffix(".weight")) for target in rule.targets
            ]
            _check_heads(fused, heads)
            made[fused] = _fuse(fused, rule, parts, heads)
    return made


def _fuse(name: str, rule: Rule, parts: Sequence[LoraModule | None], heads: int) -> LoraModule:
    there = [part for part in parts if part is not None]
    first = there[0]
    for part in there[1:]:
        same = (part.a.dtype, part.a.shape[1], part.b.dtype, part.b.shape[0], part.scaling)
        if same != (
            first.a.dtype, first.a.shape[1], first.b.dtype, first.b.shape[0], first.scaling,
        ):  # fmt: skip
            raise AdapterError(f"the parts of {name} differ in dtype, size or scaling")
    if len(there) == len(parts) and all(part.a == first.a for part in there):
        b = _rows(rule, [part.b for part in there], heads)
        return LoraModule(first.a, b, first.scaling)
    a = np.concatenate([part.a.bits() for part in there])
    blocks, at = [], 0
    for block_of in parts:
        block = np.zeros((first.b.shape[0], len(a)), dtype=first.b.bits().dtype)
        if block_of is not None:
            block[:, at : at + block_of.rank] = block_of.b.bits()
            at += block_of.rank
        blocks.append(from_bits(first.b.dtype, block))
    return LoraModule(from_bits(first.a.dtype, a), _rows(rule, blocks, heads), first.scaling)


def _rows(rule: Rule, parts: Sequence[RawTensor], heads: int) -> RawTensor:
    rows, rank = parts[0].shape
    names = tuple(map(str, range(len(parts))))
    target = TensorSpec("", parts[0].dtype, (rows * len(parts), rank))
    if len(parts) == 1:
        return parts[0]
    (made,) = Move(rule.op, names, (target,), heads).apply(lambda name: parts[int(name)])
    return made


def _moved_whole(
    saved: Mapping[str, RawTensor], *, native: bool, heads: int
) -> dict[str, RawTensor]:
    infos = {name: TensorInfo(tensor.dtype, tensor.shape) for name, tensor in saved.items()}
    plan = native_plan if native else original_plan
    made: dict[str, RawTensor] = {}
    for move in plan(infos, vision_heads=heads):
        tensors = move.apply(saved.__getitem__)
        made |= {spec.name: t for spec, t in zip(move.targets, tensors, strict=True)}
    return made

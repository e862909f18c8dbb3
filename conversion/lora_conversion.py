"""Write a LoRA adapter in the other layout of names: adapter folder in, adapter folder out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from conversion.errors import AdapterError
from conversion.layouts import Layout
from conversion.lora_adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREFIX,
    Adapter,
    alpha_of,
    read_adapter,
)
from conversion.lora_layouts import to_layout
from conversion.options import ConvertLoraOptions
from conversion.qwen_vl_files import json_bytes
from conversion.rewriting import Result
from model_store.change_notice import CHANGES, changes_text
from model_store.files import write_bytes
from model_store.manifest import Manifest, Step, scan, tool_version, write_manifest
from model_store.options import provenance
from model_store.shard_writer import ShardWriter
from model_store.snapshot_folder import check_target, finished_result, new_snapshot
from model_store.tensors import RawTensor
from qwen_vl.weight_map import WEIGHT_MAP

_ONE_FILE = 1 << 62


def convert_lora(options: ConvertLoraOptions) -> Result:
    """Write an adapter of Qwen-VL in the other layout.

    Raises:
        AdapterError: it cannot be used, or is not of Qwen-VL.
        TargetExistsError: the target holds something else.
    """
    adapter = read_adapter(options.adapter)
    if adapter.layout is Layout.OTHER:
        raise AdapterError("this adapter's modules are not named as Qwen-VL's")
    made = to_layout(adapter, Layout(options.to))
    parent = Manifest(files=scan(options.adapter))
    step = Step(
        step="convert_lora",
        options=provenance(options),
        tool=tool_version(),
        parent=parent.content_digest,
        facts={"weight_map": WEIGHT_MAP.digest, "modules": len(made.modules)},
    )
    target = options.into.absolute()
    done = finished_result(target, step)
    if done is not None:
        return Result(target, done, fresh=False)
    check_target(target, replace=False)
    with new_snapshot(target) as building:
        tensors = _tensors(made)
        with ShardWriter(
            building,
            [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()],
            max_shard_bytes=_ONE_FILE,
        ) as writer:
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            digests = writer.finish().tensors
        (building / "model.safetensors").rename(building / ADAPTER_WEIGHTS[0])
        write_bytes(building / ADAPTER_CONFIG, json_bytes(_config(made)))
        notice = (
            f"Changed by modelferry: the adapter's matrices were renamed, split or joined for the "
            f"{options.to} layout; what they add to the weights is unchanged."
        )
        write_bytes(building / CHANGES, changes_text(options.adapter, parent, step, [notice]))
        manifest = Manifest(files=scan(building), lineage=(step,), tensors=digests)
        write_manifest(building, manifest)
    return Result(target, manifest, fresh=True)


def _tensors(adapter: Adapter) -> dict[str, RawTensor]:
    made: dict[str, RawTensor] = {}
    for name, module in adapter.modules.items():
        made[f"{PREFIX}{name}.lora_A.weight"] = module.a
        made[f"{PREFIX}{name}.lora_B.weight"] = module.b
    return made | {PREFIX + name: tensor for name, tensor in adapter.saved.items()}


def _config(adapter: Adapter) -> dict[str, Any]:
    """The config with modules named in full: shorter names would match in the vision tower too."""
    config = dict(adapter.config)
    rslora = bool(config.get("use_rslora", False))
    kinds = Counter((module.rank, module.scaling) for module in adapter.modules.values())
    (rank, scaling) = kinds.most_common(1)[0][0] if kinds else (config["r"], 1.0)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, module in adapter.modules.items():
        if (module.rank, module.scaling) != (rank, scaling):
            ranks[name] = module.rank
            alphas[name] = alpha_of(module.scaling, module.rank, rslora=rslora)
    if kinds:
        config |= {"r": rank, "lora_alpha": alpha_of(scaling, rank, rslora=rslora)}
    saved = sorted({name.rpartition(".")[0] for name in adapter.saved})
    patterns: Mapping[str, Any] = {"rank_pattern": ranks, "alpha_pattern": alphas}
    return {
        **config,
        **patterns,
        "target_modules": sorted(adapter.modules),
        "modules_to_save": saved or None,
    }

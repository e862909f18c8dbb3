"""Write the trained tiny model as a checkpoint folder in the layout of 2023."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model_store.files import copy_file, write_bytes, write_text
from model_store.manifest import Manifest, TensorDigest, scan, write_manifest
from model_store.snapshot_folder import new_snapshot
from model_store.tensors import RawTensor
from model_store.torch_writer import TorchShardWriter
from model_store.weight_rules import TensorSpec
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.weight_map import original_plan
from scripts.make_tiny_checkpoint import TOKENIZER_CONFIG, generation_config
from scripts.tiny_model import original_config

_ROOT = Path(__file__).resolve().parent.parent
_DTYPE = "BF16"


def export(
    model: QwenVLForConditionalGeneration,
    rank_file: bytes,
    folder: Path,
    *,
    texts: Mapping[str, str],
    replace: bool = False,
) -> Manifest:
    """Write a snapshot: bf16 weights under the names of 2023, rank file, configs, licence.

    Args:
        model: in float32; not modified.
        rank_file: what the vocabulary was counted from.
        folder: the place of the snapshot.
        texts: more files, such as the card: name -> content.
        replace: allow an older snapshot at `folder` to be replaced.

    Raises:
        TargetExistsError: `folder` exists, see `new_snapshot`.
    """
    n_ranks = rank_file.count(b"\n")
    config = original_config(n_ranks)
    with new_snapshot(folder, replace=replace) as building:
        write_bytes(building / "qwen.tiktoken", rank_file)
        for name, value in {
            "config.json": config,
            "generation_config.json": generation_config(n_ranks),
            "tokenizer_config.json": TOKENIZER_CONFIG,
        }.items():
            write_text(building / name, json.dumps(value, indent=2, sort_keys=True) + "\n")
        copy_file(_ROOT / "LICENSE", building / "LICENSE")
        for name, text in texts.items():
            (building / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(building / name, text)
        tensors = _write_weights(building, model, vision_heads=config["visual"]["heads"])
        manifest = Manifest(files=scan(building), tensors=tensors)
        write_manifest(building, manifest)
    return manifest


def _write_weights(
    folder: Path, model: QwenVLForConditionalGeneration, *, vision_heads: int
) -> Mapping[str, TensorDigest]:
    raw = {name: _raw(value) for name, value in model.state_dict().items()}
    infos = {name: TensorSpec(name, one.dtype, one.shape) for name, one in raw.items()}
    moves = original_plan(infos, vision_heads=vision_heads)
    plan = [(target.name, target.dtype, target.shape) for move in moves for target in move.targets]
    total = sum(one.nbytes for one in raw.values())
    # over half of it, but not all: two shards, as the published model has ten
    with TorchShardWriter(folder, plan, max_shard_bytes=total * 3 // 5) as writer:
        for move in moves:
            for target, tensor in zip(move.targets, move.apply(raw.__getitem__), strict=True):
                writer.add(target.name, tensor)
        return writer.finish().tensors


def _raw(value: Tensor) -> RawTensor:
    rounded = value.detach().to(torch.bfloat16).contiguous()
    data = rounded.view(torch.uint8).numpy().reshape(-1).data
    return RawTensor(_DTYPE, tuple(value.shape), memoryview(data).cast("B"))


def trained_model(folder: Path, rank_file: bytes) -> QwenVLForConditionalGeneration:
    """Read the model that the last stage left in a training folder."""
    from scripts.tiny_model import fresh_model

    model = fresh_model(rank_file.count(b"\n"))
    states = [folder / f"{stage}.pt" for stage in ("joint", "further", "language")]
    last = next(path for path in states if path.is_file())
    kept = torch.load(last, weights_only=True)["modules"]
    part = "qwen."  # the rest is what the stage throws away
    model.load_state_dict(
        {name.removeprefix(part): value for name, value in kept.items() if name.startswith(part)}
    )
    return model

"""What `benchmarks/convert.py` runs: one function each, in a process of its own.

Each takes the source's folder and the target's; it imports what it needs, so that the memory it
shows is its own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

_LAYER_BYTES = 2 * (4 * 2304 * 2304 + 3 * 2304 * 6912)
_UNITS = {"MB": 10**6, "GB": 10**9}
_HEADS = 24  # every dim 0 here divides by 3 * 24


def cp(source: Path, target: Path) -> None:
    """`cp -r`: the measure of everything."""


def cp_and_sha256(source: Path, target: Path) -> None:
    """`cp -r`, then the sha256 of every copy by hashlib."""
    import hashlib

    subprocess.run(["cp", "-r", str(source), str(target)], check=True)  # noqa: S607
    for path in target.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(source: Path, target: Path) -> None:
    """sha256 of the source's files by hashlib, in pieces of 1 MiB: what one pass costs at least."""
    import hashlib

    target.mkdir()
    buffer = memoryview(bytearray(1 << 20))
    for path in sorted(source.glob("*.bin")):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(buffer[:size])


def ours_without_digests(source: Path, target: Path) -> None:
    """Our reader and writer with no hashing: what the digests are added to."""
    from concurrent.futures import Future

    from model_store.checkpoint import open_checkpoint
    from model_store.hashed_file import HashedFile, HashLanes

    class Unhashed(HashLanes):
        def file(self, update: Callable[[memoryview], object], chunk: memoryview) -> Future[object]:
            done: Future[object] = Future()
            done.set_result(None)
            return done

    lanes = Unhashed()
    with open_checkpoint(source) as checkpoint:
        for path in checkpoint.files:
            made, at = HashedFile(target / f"{path.stem}.safetensors", lanes), 0
            for name in checkpoint.names():
                if checkpoint.file(name) == path:
                    made.write(at, checkpoint.source(name))
                    at += checkpoint.info(name).nbytes
            made.finish().result()
    lanes.close()


def to_safetensors(source: Path, target: Path) -> None:
    """Ours as it is: the source's files, every tensor and every file of the result hashed."""
    _convert(source, target, verify=True)


def to_safetensors_no_verify(source: Path, target: Path) -> None:
    """Ours with --no-verify: every tensor and every file of the result hashed."""
    _convert(source, target, verify=False)


def reshard_known(source: Path, target: Path) -> None:
    """Ours, from a snapshot of ours, with --no-verify: the tensors' digests are known."""
    _reshard(source.with_name(source.name + "-safe"), target, verify=False)


def reshard_known_verified(source: Path, target: Path) -> None:
    """Ours, from a snapshot of ours: each tensor is compared with its digest as it passes."""
    _reshard(source.with_name(source.name + "-safe"), target, verify=True)


def cast_no_verify(source: Path, target: Path) -> None:
    """Ours, float32 to bfloat16, with --no-verify: every tensor and file of the result hashed."""
    from conversion.casting import cast_snapshot
    from conversion.options import CastOptions

    wide = source.with_name(source.name + "-float32")
    options = CastOptions(str(wide), to="bfloat16", max_shard_size="1GB", verify=False)
    cast_snapshot(wide, target, options)


def _convert(source: Path, target: Path, *, verify: bool) -> None:
    from conversion.options import ToSafetensorsOptions
    from conversion.steps import to_safetensors as step

    step(source, target, ToSafetensorsOptions(str(source), max_shard_size="1GB", verify=verify))


def _reshard(source: Path, target: Path, *, verify: bool) -> None:
    from conversion.options import ReshardOptions
    from conversion.steps import reshard as step

    step(source, target, ReshardOptions(str(source), max_shard_size="250MB", verify=verify))


def split_rows(source: Path, target: Path) -> None:
    """Ours: every matrix split into three by rows, as c_attn is; all digests."""
    _split(source, target, "rows")


def split_heads(source: Path, target: Path) -> None:
    """Ours: every matrix split into three, rows interleaved per head, as in_proj is."""
    _split(source, target, "heads")


def _split(source: Path, target: Path, kind: str) -> None:
    from model_store.checkpoint import open_checkpoint
    from model_store.shard_writer import ShardWriter
    from model_store.weight_rules import Move, Op, TensorSpec, planned

    target.mkdir()
    with open_checkpoint(source) as checkpoint:
        moves = []
        for name in checkpoint.names():
            info = checkpoint.info(name)
            parts = 3 if len(info.shape) == 2 else 1
            shape = (info.shape[0] // parts, *info.shape[1:])
            targets = tuple(TensorSpec(f"{name}.{n}", info.dtype, shape) for n in range(parts))
            moves.append(Move(Op(kind) if parts > 1 else Op.RENAME, (name,), targets, _HEADS))
        plan = [(spec.name, spec.dtype, spec.shape) for spec in planned(moves).values()]
        with ShardWriter(target, plan, max_shard_bytes=10**9) as writer:
            for move in moves:
                made = move.rearrange(checkpoint.source)
                for spec, tensor in zip(move.targets, made, strict=True):
                    writer.add(spec.name, tensor)
            writer.finish()


def torch_load_save_file(source: Path, target: Path) -> None:
    """As safetensors' convert script does: torch.load(weights_only=True), then save_file."""
    import torch
    from safetensors.torch import save_file

    target.mkdir()
    for path in sorted(source.glob("*.bin")):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: tensor.contiguous() for name, tensor in loaded.items()}
        save_file(tensors, target / f"{path.stem}.safetensors", metadata={"format": "pt"})


def transformers_load_save(source: Path, target: Path) -> None:
    """from_pretrained and save_pretrained of the model's class."""
    import torch
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(target, max_shard_size="1GB")


def transformers_cast(source: Path, target: Path) -> None:
    """from_pretrained(dtype=bfloat16) of float32 files, and save_pretrained."""
    import torch
    from transformers import Qwen2ForCausalLM

    wide = source.with_name(source.name + "-float32")
    model = Qwen2ForCausalLM.from_pretrained(wide, dtype=torch.bfloat16)
    model.save_pretrained(target, max_shard_size="1GB")


def make_source(size: Path, target: Path) -> None:
    """A Qwen2-shaped checkpoint in .bin shards of 1 GB; values from seeded blocks, bf16."""
    import torch

    _make(size, target, torch.bfloat16)


def make_float32(size: Path, target: Path) -> None:
    """The same size of float32, of half as many layers."""
    import torch

    _make(size, target, torch.float32)


def make_safe(source: Path, target: Path) -> None:
    """The source in safetensors, by us."""
    _convert(source, target, verify=False)


def _make(size: Path, target: Path, dtype: object) -> None:
    import torch
    from transformers import Qwen2Config

    from model_store.manifest import Manifest, scan, write_manifest

    wide = dtype is torch.float32
    width = 4 if wide else 2
    layers = max(1, round(int(size.name[:-2]) * _UNITS[size.name[-2:]] * 2 / width / _LAYER_BYTES))
    target.mkdir(parents=True)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(16))
    block = block if wide else block.bfloat16()
    weight_map: dict[str, str] = {}
    shapes = _shapes(layers)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(width * torch.Size(s).numel() for s in shards[-1].values()) > 9 * 10**8:
            shards.append({})
        shards[-1][name] = shape
    for number, shard in enumerate(shards, start=1):
        file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        tensors = {}
        for name, shape in shard.items():
            count = torch.Size(shape).numel()
            whole = block.repeat(-(-count // len(block)))
            tensors[name] = whole[:count].clone().reshape(shape)
        torch.save(tensors, target / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(width * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    Qwen2Config(
        hidden_size=2304, intermediate_size=6912, num_hidden_layers=layers, vocab_size=7200,
        num_attention_heads=_HEADS, num_key_value_heads=_HEADS, tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"], dtype="float32" if wide else "bfloat16",
    ).save_pretrained(target)  # fmt: skip
    write_manifest(target, Manifest(files=scan(target)))


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (7200, 2304)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for part in "qkv":
            shapes[f"{at}self_attn.{part}_proj.weight"] = (2304, 2304)
            shapes[f"{at}self_attn.{part}_proj.bias"] = (2304,)
        shapes[f"{at}self_attn.o_proj.weight"] = (2304, 2304)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (6912, 2304)
        shapes[f"{at}mlp.down_proj.weight"] = (2304, 6912)
        for norm in ("input", "post_attention"):
            shapes[f"{at}{norm}_layernorm.weight"] = (2304,)
    return shapes | {"model.norm.weight": (2304,), "lm_head.weight": (7200, 2304)}


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    made.__name__: made for made in (make_source, make_float32, make_safe)
}
RUNNERS: dict[str, Callable[[Path, Path], None]] = {
    made.__name__: made
    for made in (
        cp, cp_and_sha256, hash_once, ours_without_digests, to_safetensors_no_verify,
        to_safetensors, reshard_known, reshard_known_verified, split_rows, split_heads,
        cast_no_verify, torch_load_save_file, transformers_load_save, transformers_cast,
    )
}  # fmt: skip

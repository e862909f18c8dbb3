"""Which tensors go into which weight file: decided from names, dtypes and shapes alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model_store.errors import CheckpointError
from model_store.manifest import FileEntry, TensorDigest
from model_store.tensors import ITEM_SIZE


class PlannedTensor(NamedTuple):
    """A tensor that will be written; a plain (name, dtype, shape) does as well."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


Plan = Iterable[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A weight file to be written and its tensors, in the order of the plan."""

    file: str
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True, slots=True)
class WrittenShards:
    """What a writer wrote: weight files and index, and the digest of every tensor."""

    files: tuple[FileEntry, ...]
    tensors: Mapping[str, TensorDigest]


def plan_shards(
    plan: Plan, *, max_shard_bytes: int, stem: str, suffix: str
) -> tuple[PlannedShard, ...]:
    """Fill shards in the order of the plan; a tensor over the limit gets one of its own.

    Raises:
        CheckpointError: no tensors, a name that is empty or planned twice, an unknown dtype, or a
            limit below 1.
    """
    if max_shard_bytes < 1:
        raise CheckpointError(f"a shard cannot be limited to {max_shard_bytes} bytes")
    groups: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in _checked(plan):
        if groups[-1] and used + tensor.nbytes > max_shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    if len(groups) == 1:
        return (PlannedShard(stem + suffix, tuple(groups[0])),)
    return tuple(
        PlannedShard(f"{stem}-{number:05d}-of-{len(groups):05d}{suffix}", tuple(tensors))
        for number, tensors in enumerate(groups, start=1)
    )


def _checked(plan: Plan) -> list[PlannedTensor]:
    tensors = [PlannedTensor(name, dtype, tuple(shape)) for name, dtype, shape in plan]
    seen: set[str] = set()
    for tensor in tensors:
        if not tensor.name or tensor.name in seen or tensor.name == "__metadata__":
            raise CheckpointError(f"tensor name {tensor.name!r} is unusable or planned twice")
        if tensor.dtype not in ITEM_SIZE or any(size < 0 for size in tensor.shape):
            raise CheckpointError(f"tensor {tensor.name!r} cannot be {tensor.dtype} {tensor.shape}")
        seen.add(tensor.name)
    if not tensors:
        raise CheckpointError("a checkpoint without a tensor cannot be written")
    return tensors


def index_json(shards: Sequence[PlannedShard]) -> bytes:
    """The index of several shards: their true total size, and tensor name -> file."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()

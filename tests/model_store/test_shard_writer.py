"""Safetensors shards: the same bytes for the same plan, true digests, nothing half-written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.files import sha256_file
from model_store.shard_writer import PlannedTensor, ShardWriter, WrittenShards
from model_store.tensors import RawTensor, from_bits


def some_tensors() -> dict[str, RawTensor]:
    """Dtypes of several widths, one tensor empty, one over the small limit of the tests."""
    shapes = {
        "flag": ("BOOL", (3,)), "embed": ("BF16", (7, 5)), "wide": ("I64", (4,)),
        "none": ("F32", (0, 9)), "scalar": ("F32", ()), "big": ("F16", (40, 8)),
        "last": ("BF16", (2, 2)),
    }  # fmt: skip
    kinds = {"BOOL": np.bool_, "I64": np.int64, "F32": np.uint32}
    return {
        name: from_bits(dtype, pattern(shape).astype(kinds.get(dtype, np.uint16)))
        for name, (dtype, shape) in shapes.items()
    }


def pattern(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return (np.arange(math.prod(shape)) % 3 % 2).reshape(shape)


def planned(tensors: dict[str, RawTensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]


def write(
    folder: Path, tensors: dict[str, RawTensor], *, order: int = 1, limit: int = 10**9
) -> WrittenShards:
    with ShardWriter(folder, planned(tensors), max_shard_bytes=limit) as writer:
        for name in list(tensors)[::order]:
            writer.add(name, tensors[name])
        return writer.finish()


@pytest.mark.parametrize("limit", [1, 100, 10**9])
def test_what_is_written_is_read_back(tmp_path: Path, limit: int) -> None:
    tensors = some_tensors()

    written = write(tmp_path, tensors, limit=limit)

    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.names()) == set(tensors)
        for name, tensor in tensors.items():
            read = checkpoint.read(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert bytes(read.data) == bytes(tensor.data)
            assert written.tensors[name] == tensor.digest()
    assert list(written.tensors) == list(tensors)


def test_the_digest_of_every_file_is_true(tmp_path: Path) -> None:
    written = write(tmp_path, some_tensors(), limit=100)

    assert {entry.path for entry in written.files} == {path.name for path in tmp_path.iterdir()}
    for entry in written.files:
        assert entry.sha256 == sha256_file(tmp_path / entry.path)
        assert entry.size == (tmp_path / entry.path).stat().st_size


def test_the_order_of_adding_does_not_change_a_byte(tmp_path: Path) -> None:
    forward = write(tmp_path / "a", some_tensors(), limit=100)
    backward = write(tmp_path / "b", some_tensors(), limit=100, order=-1)

    assert forward == backward
    assert all(sha256_file(tmp_path / "b" / entry.path) == entry.sha256 for entry in forward.files)


def test_the_bytes_are_these(tmp_path: Path) -> None:
    """A golden digest: another one means that published files change for the same input."""
    written = write(tmp_path, some_tensors())

    assert written.files[0].sha256[:16] == "a09ff03f5acd5cb1"


def test_names_follow_the_hubs_custom(tmp_path: Path) -> None:
    one = write(tmp_path / "one", some_tensors())
    many = write(tmp_path / "many", some_tensors(), limit=100)

    assert [entry.path for entry in one.files] == ["model.safetensors"]
    assert [entry.path for entry in many.files] == [
        "model-00001-of-00004.safetensors",
        "model-00002-of-00004.safetensors",
        "model-00003-of-00004.safetensors",
        "model-00004-of-00004.safetensors",
        "model.safetensors.index.json",
    ]


def test_the_index_tells_the_true_total(tmp_path: Path) -> None:
    tensors = some_tensors()

    write(tmp_path, tensors, limit=100)

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"]["big"] == "model-00003-of-00004.safetensors"


def test_the_reference_library_reads_it_as_torch_tensors(tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path, tensors)

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            read: torch.Tensor = file.get_tensor(name)
            assert tuple(read.shape) == tensor.shape
            if tensor.nbytes:
                flat = read.reshape(-1).view(torch.uint8)
                assert flat.numpy().tobytes() == bytes(tensor.data)


def test_metadata_can_be_told(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, [("a", "U8", (1,))], metadata={"b": "2", "a": "1"}) as writer:
        writer.add("a", RawTensor("U8", (1,), memoryview(b"x")))
        writer.finish()

    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"a": "1", "b": "2"}


def test_a_large_tensor_is_hashed_in_chunks(tmp_path: Path) -> None:
    tensor = from_bits("U8", np.random.default_rng(0).integers(0, 256, 20 << 20, dtype=np.uint8))

    written = write(tmp_path, {"x": tensor})

    assert written.tensors["x"] == tensor.digest()
    assert written.files[0].sha256 == sha256_file(tmp_path / "model.safetensors")


def test_leaving_early_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    tensors = some_tensors()

    with ShardWriter(tmp_path, planned(tensors), max_shard_bytes=100) as writer:
        writer.add("big", tensors["big"])
        writer.add("flag", tensors["flag"])

    # the shard of "big" was complete
    assert [path.name for path in tmp_path.iterdir()] == ["model-00003-of-00004.safetensors"]


@pytest.mark.parametrize(
    "plan",
    [
        [],
        [("", "F32", (1,))],
        [("a", "F32", (1,)), ("a", "F32", (1,))],
        [("a", "F99", (1,))],
        [("a", "F32", (-1,))],
        [("__metadata__", "F32", (1,))],
    ],
)
def test_a_plan_that_cannot_be_written_is_refused(
    tmp_path: Path, plan: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    with pytest.raises(CheckpointError):
        ShardWriter(tmp_path, plan)


def test_only_what_was_planned_is_taken_and_only_once(tmp_path: Path) -> None:
    tensors = some_tensors()
    with ShardWriter(tmp_path, planned(tensors)) as writer:
        writer.add("flag", tensors["flag"])

        with pytest.raises(CheckpointError, match="written before"):
            writer.add("flag", tensors["flag"])
        with pytest.raises(CheckpointError, match="not in the plan"):
            writer.add("other", tensors["flag"])
        with pytest.raises(CheckpointError, match="was planned"):
            writer.add("embed", tensors["last"])
        with pytest.raises(CheckpointError, match="never written"):
            writer.finish()

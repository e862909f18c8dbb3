"""Torch files without torch: torch itself must read them, without pickle freedom, and mapped."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.files import sha256_file
from model_store.stored_zip import read_entries
from model_store.tensors import RawTensor
from model_store.torch_writer import TorchShardWriter
from model_store.weight_file import WeightFile

TORCH = {
    "BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F64": torch.float64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def raw(value: torch.Tensor) -> RawTensor:
    name = next(name for name, dtype in TORCH.items() if dtype == value.dtype)
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else None
    return RawTensor(name, tuple(value.shape), memoryview(b"") if data is None else data.data)


def some_tensors() -> dict[str, torch.Tensor]:
    made = {name: torch.arange(24).reshape(2, 3, 4).to(kind) for name, kind in TORCH.items()}
    return made | {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "名": torch.ones(300)}


def write(
    folder: Path, tensors: dict[str, torch.Tensor], *, order: int = 1, limit: int = 10**9
) -> dict[str, str]:
    raws = {name: raw(value) for name, value in tensors.items()}
    plan = [(name, tensor.dtype, tensor.shape) for name, tensor in raws.items()]
    with TorchShardWriter(folder, plan, max_shard_bytes=limit) as writer:
        for name in list(raws)[::order]:
            writer.add(name, raws[name])
        written = writer.finish()
    assert written.tensors == {name: tensor.digest() for name, tensor in raws.items()}
    return {entry.path: entry.sha256 for entry in written.files}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("limit", [400, 10**9])
def test_torch_reads_it_with_weights_only(tmp_path: Path, mapped: bool, limit: int) -> None:
    tensors = some_tensors()

    write(tmp_path, tensors, limit=limit)

    read: dict[str, torch.Tensor] = {}
    for path in sorted(tmp_path.glob("*.bin")):
        read |= torch.load(path, weights_only=True, mmap=mapped)
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value), name


def test_our_reader_reads_it(tmp_path: Path) -> None:
    tensors = some_tensors()

    write(tmp_path, tensors, limit=400)

    with open_checkpoint(tmp_path) as checkpoint:
        for name, value in tensors.items():
            assert checkpoint.read(name).digest() == raw(value).digest()


def test_digests_are_true_and_the_order_of_adding_changes_nothing(tmp_path: Path) -> None:
    forward = write(tmp_path / "a", some_tensors(), limit=400)
    backward = write(tmp_path / "b", some_tensors(), limit=400, order=-1)

    assert forward == backward
    assert {path.name: sha256_file(path) for path in (tmp_path / "b").iterdir()} == forward


def test_the_bytes_are_these(tmp_path: Path) -> None:
    """A golden digest: another one means that published files change for the same input."""
    written = write(tmp_path, some_tensors())

    assert written["pytorch_model.bin"][:16] == "9a6a991a3fd8f75d"


def test_the_archive_is_sound_and_every_tensor_aligned(tmp_path: Path) -> None:
    write(tmp_path, some_tensors())
    path = tmp_path / "pytorch_model.bin"

    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every checksum is right
        assert archive.read("archive/version") == b"3\n"
    with WeightFile(path) as file:
        entries = read_entries(file)
    assert all(entry.start % 64 == 0 for entry in entries.values())


def test_several_files_get_an_index(tmp_path: Path) -> None:
    tensors = some_tensors()

    files = write(tmp_path, tensors, limit=400)

    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())
    assert set(index["weight_map"].values()) | {"pytorch_model.bin.index.json"} == set(files)
    assert index["metadata"]["total_size"] == sum(raw(value).nbytes for value in tensors.values())


def test_large_counts_are_written_as_long_integers(tmp_path: Path) -> None:
    from model_store.pickle_records import read_records
    from model_store.shard_plan import PlannedTensor
    from model_store.torch_writer import state_dict_pickle

    program = state_dict_pickle((PlannedTensor("x", "U8", (2**33, 3)),))

    record = read_records(program)["x"]
    assert (record.shape, record.strides) == ((2**33, 3), (3, 1))
    assert record.storage.elements == 3 * 2**33


@pytest.mark.parametrize(
    ("tensor", "says"),
    [(("x", "U64", (2,)), "no U64"), (("x", "BF16", (2**31,)), "over 4 GB")],
)
def test_what_torch_or_zip_cannot_hold_is_refused(
    tmp_path: Path, tensor: tuple[str, str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(CheckpointError, match=says):
        TorchShardWriter(tmp_path, [tensor])

"""Torch zip files: equal to what torch reads, and nothing of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_store.errors import CheckpointError
from model_store.torch_zip import TorchZipFile
from tests.model_store.hostile import Hostile, state_dict, storage, tensor, text, torch_zip
from tests.model_store.hostile_archives import ARCHIVES
from tests.model_store.hostile_pickles import PICKLES, TENSORS


def raw_bytes(value: torch.Tensor) -> bytes:
    flat = value.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def saved(path: Path, value: object) -> TorchZipFile:
    torch.save(value, path)
    return TorchZipFile(path)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.bfloat16, "BF16"), (torch.float32, "F32"), (torch.float16, "F16"),
        (torch.float64, "F64"), (torch.int64, "I64"), (torch.int32, "I32"), (torch.int16, "I16"),
        (torch.int8, "I8"), (torch.uint8, "U8"), (torch.bool, "BOOL"),
    ],
)  # fmt: skip
def test_every_dtype_is_read_as_torch_wrote_it(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    value = torch.arange(24).reshape(2, 3, 4).to(dtype)

    read = saved(tmp_path / "m.bin", {"x": value}).read("x")

    assert (read.dtype, read.shape) == (name, (2, 3, 4))
    assert bytes(read.data) == raw_bytes(value)


def test_views_of_one_storage_are_read_in_row_major_order(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    tensors = {
        "whole": base,
        "transposed": base.t(),
        "slice": base[2:4],
        "steps": base[1:6:2, 3:9:3],
        "column": base[:, 7],
        "one": base[3, 3],
        "none": base[:0],
    }

    file = saved(tmp_path / "m.bin", tensors)

    for name, value in tensors.items():
        assert file.read(name).shape == tuple(value.shape)
        assert bytes(file.read(name).data) == raw_bytes(value), name


def test_tied_tensors_and_parameters_are_read(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 3))

    file = saved(tmp_path / "m.bin", {"embed": weight, "head": weight})

    assert bytes(file.read("embed").data) == bytes(file.read("head").data) == raw_bytes(weight)


def test_a_modules_state_dict_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))

    file = saved(tmp_path / "m.bin", module.state_dict())

    assert list(file.tensors) == list(module.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "model_state_dict"])
def test_a_state_dict_inside_a_trainers_file_is_found(tmp_path: Path, key: str) -> None:
    value = {key: {"x": torch.ones(2)}, "epoch": 3, "loss": 0.5, "steps": [1, None, True]}

    assert list(saved(tmp_path / "m.pt", value).tensors) == ["x"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"x": torch.ones(1), "epoch": 3}, "'epoch' is no tensor"),
        ([torch.ones(1)], "holds a list"),
        ({"a": {"x": torch.ones(1)}}, "no state dict"),
        ({1: torch.ones(1)}, "plain text"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        saved(tmp_path / "m.bin", value)


def test_protocol_4_is_read(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "m.bin", pickle_protocol=4)

    assert list(TorchZipFile(tmp_path / "m.bin").tensors) == ["x"]


def test_the_good_file_of_the_hostile_kit_is_good(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "m.bin")

    assert bytes(TorchZipFile(path).read("weight").data) == bytes(range(16))


def test_a_pickle_of_too_many_steps_is_refused(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "m.bin", b"\x80\x02" + b"N" * 1_000_100 + b".")

    with pytest.raises(CheckpointError, match="steps"):
        TorchZipFile(path)


def test_an_error_names_file_and_tensor(tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "m.bin", state_dict(good=tensor(), bad=tensor(offset=9)))

    with pytest.raises(CheckpointError, match=r"m\.bin: tensor 'bad'"):
        TorchZipFile(path)


def test_a_tensor_on_meta_has_no_data(tmp_path: Path) -> None:
    held = storage().replace(text("cpu"), text("meta"))

    with pytest.raises(CheckpointError, match="meta"):
        TorchZipFile(torch_zip(tmp_path / "m.bin", state_dict(weight=tensor(held=held))))


@pytest.mark.parametrize("bad", [*PICKLES, *TENSORS, *ARCHIVES], ids=lambda bad: bad.label)
def test_a_hostile_file_is_refused(tmp_path: Path, bad: Hostile) -> None:
    path = bad.write(tmp_path)

    with pytest.raises(bad.error, match=bad.says):
        TorchZipFile(path)

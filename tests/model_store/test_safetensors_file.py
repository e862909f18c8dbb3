"""Safetensors files: equal to what the reference library reads, and every lie is found."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model_store.errors import CheckpointError
from model_store.safetensors_file import SafetensorsFile
from tests.model_store.hostile import Hostile, entry, safetensors
from tests.model_store.hostile_safetensors import SAFETENSORS


def test_what_the_reference_library_wrote_is_read(tmp_path: Path) -> None:
    values: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([True, False, True]),
        "c": np.full((), 2.5, dtype=np.float16),
        "d": np.zeros((0, 7), dtype=np.int64),
    }
    save_file(values, tmp_path / "m.safetensors", metadata={"format": "pt"})

    file = SafetensorsFile(tmp_path / "m.safetensors")

    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(values)
    for name, value in load_file(tmp_path / "m.safetensors").items():
        assert file.tensors[name].shape == value.shape
        assert np.array_equal(file.read(name).values(), value)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    # 0x80 is the first byte of a pickle, and of a header of 128 bytes
    header = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(128)

    file = SafetensorsFile(safetensors(tmp_path / "m.safetensors", header))

    assert (tmp_path / "m.safetensors").read_bytes()[0] == 0x80
    assert bytes(file.read("a").data) == bytes(range(16))


def test_tensors_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    header = {"late": entry(8, 16, shape=[2]), "early": entry(0, 8, shape=[2])}

    file = SafetensorsFile(safetensors(tmp_path / "m.safetensors", header))

    assert list(file.tensors) == ["early", "late"]


def test_a_file_without_tensors_is_read(tmp_path: Path) -> None:
    file = SafetensorsFile(safetensors(tmp_path / "m.safetensors", {}, b""))

    assert list(file.tensors) == []


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    file = SafetensorsFile(safetensors(tmp_path / "m.safetensors", {"a": entry()}))

    tensor = file.read("a")
    file.close()

    assert bytes(tensor.data) == bytes(range(16))


def test_reading_other_tensors_does_not_change_the_ones_read_before(tmp_path: Path) -> None:
    size = 1 << 16
    data = np.random.default_rng(0).bytes(3 * size)
    header = {
        name: entry(at * size, (at + 1) * size, dtype="U8", shape=[size])
        for at, name in enumerate("abc")
    }
    file = SafetensorsFile(safetensors(tmp_path / "m.safetensors", header, data))

    first, second, third = (file.read(name) for name in "abc")

    assert bytes(first.data) + bytes(second.data) + bytes(third.data) == data


@pytest.mark.parametrize("bad", SAFETENSORS, ids=lambda bad: bad.label)
def test_a_hostile_file_is_refused(tmp_path: Path, bad: Hostile) -> None:
    path = bad.write(tmp_path)

    with pytest.raises(bad.error, match=bad.says):
        SafetensorsFile(path)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 20])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    path = safetensors(tmp_path / "m.safetensors", {"a": entry()})
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(CheckpointError):
        SafetensorsFile(path)


def test_the_whole_header_must_be_in_the_file(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "m.safetensors", {"a": entry()})
    content = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 10**6) + content[8:])

    with pytest.raises(CheckpointError, match="ends inside"):
        SafetensorsFile(path)

"""Checkpoints: the right files of a folder, joined by an index that must be true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError, StoreError, UnsafeCheckpointError
from tests.model_store.hostile import Hostile
from tests.model_store.hostile_folders import FOLDERS
from tests.model_store.hostile_safetensors import NOT_WEIGHTS

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def write_shard(path: Path, *names: str, value: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full(2, value, dtype=np.float32) for name in names}, path)


def write_index(folder: Path, weight_map: Mapping[str, object]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards and a true index."""
    write_shard(tmp_path / ONE, "a", "b")
    write_shard(tmp_path / TWO, "c")
    write_index(tmp_path, {"a": ONE, "b": ONE, "c": TWO})
    return tmp_path


def test_shards_are_joined_by_their_index(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.names()) == ["a", "b", "c"]
        assert checkpoint.files == (sharded / ONE, sharded / TWO)
        assert checkpoint.file("c") == sharded / TWO
        assert (checkpoint.info("a").dtype, checkpoint.info("a").shape) == ("F32", (2,))
        assert checkpoint.read("c").values().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", [INDEX, ONE])
def test_an_index_or_one_shard_can_be_named(sharded: Path, name: str) -> None:
    with open_checkpoint(sharded / name) as checkpoint:
        assert "a" in checkpoint.names()


def test_safetensors_win_over_torch_files(sharded: Path) -> None:
    torch.save({"old": torch.ones(1)}, sharded / "pytorch_model.bin")

    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.names()) == ["a", "b", "c"]


def test_torch_shards_are_joined_too(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "one.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.names()) == ["a", "b"]


def test_a_lone_weight_file_of_any_name_is_found(tmp_path: Path) -> None:
    write_shard(tmp_path / "gptq_model-4bit-128g.safetensors", "a")
    torch.save({}, tmp_path / "training_args.bin")

    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.names()) == ["a"]


def test_several_weight_files_need_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path / ONE, "a")
    write_shard(tmp_path / TWO, "b")

    with pytest.raises(CheckpointError, match="2 weight files"):
        open_checkpoint(tmp_path)


def test_a_whole_file_beside_an_index_is_ambiguous(sharded: Path) -> None:
    write_shard(sharded / "model.safetensors", "a", "b", "c")

    with pytest.raises(CheckpointError, match="both"):
        open_checkpoint(sharded)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / TWO).unlink()

    with pytest.raises(CheckpointError, match=TWO):
        open_checkpoint(sharded)


def test_a_tensor_that_no_shard_holds_is_named(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": ONE, "c": TWO, "ghost": TWO})

    with pytest.raises(CheckpointError, match="ghost"):
        open_checkpoint(sharded)


def test_a_tensor_that_the_index_does_not_list_is_named(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "c": TWO})

    with pytest.raises(CheckpointError, match="'b'"):
        open_checkpoint(sharded)


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(sharded: Path) -> None:
    write_index(sharded, {"a": ONE, "b": TWO, "c": TWO})

    with pytest.raises(CheckpointError, match="the index says"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    write_shard(sharded / TWO, "c", "a", value=2.0)

    with pytest.raises(CheckpointError, match="'a'"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("path", ["../good.safetensors", "/etc/passwd", "x\\..\\y.safetensors", ""])
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    write_shard(tmp_path / "good.safetensors", "a")
    folder = tmp_path / "inner"
    folder.mkdir()
    write_index(folder, {"a": path})

    with pytest.raises(UnsafeCheckpointError):
        open_checkpoint(folder)


def test_an_index_cannot_go_through_a_link(tmp_path: Path) -> None:
    write_shard(tmp_path / "outside" / "m.safetensors", "a")
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    write_index(folder, {"a": "link/m.safetensors"})

    with pytest.raises(UnsafeCheckpointError, match="symbolic link"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"a": 1, "a": 2}']
)
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    write_shard(tmp_path / ONE, "a")
    (tmp_path / INDEX).write_text(index)

    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_a_pipe_in_place_of_weights_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")

    with pytest.raises(StoreError):
        open_checkpoint(tmp_path)


def test_an_unknown_tensor_is_an_error_of_ours(sharded: Path) -> None:
    with (
        open_checkpoint(sharded) as checkpoint,
        pytest.raises(CheckpointError, match="no tensor 'x'"),
    ):
        checkpoint.read("x")


@pytest.mark.parametrize("bad", [*NOT_WEIGHTS, *FOLDERS], ids=lambda bad: bad.label)
def test_what_is_no_weight_file_is_named_as_what_it_is(tmp_path: Path, bad: Hostile) -> None:
    with pytest.raises(bad.error, match=bad.says):
        open_checkpoint(bad.write(tmp_path))


def test_nothing_here_imports_torch() -> None:
    program = "import sys, model_store.checkpoint as _; sys.exit('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == 0


def test_reading_a_large_checkpoint_keeps_little_of_it_resident(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    count, size = 24, 4 << 20
    save_file({f"t{n:02}": np.zeros(size, dtype=np.uint8) for n in range(count)}, path)
    program = (
        "import hashlib, sys\n"
        "from model_store.checkpoint import open_checkpoint\n"
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "before, peak = resident(), 0\n"
        "with open_checkpoint(sys.argv[1]) as checkpoint:\n"
        "    for name in checkpoint.names():\n"
        "        hashlib.sha256(checkpoint.read(name).data)\n"
        "        peak = max(peak, resident())\n"
        "print(peak - before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True
    )

    assert int(done.stdout) < 3 * size


@pytest.mark.parametrize(
    ("data", "way_out"),
    [
        (b"\x80\x02}q\x00.", "torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "download the file again"),
    ],
)
def test_a_file_of_another_kind_comes_with_the_way_out(
    tmp_path: Path, data: bytes, way_out: str
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(data)

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)

    assert way_out in caught.value.hint

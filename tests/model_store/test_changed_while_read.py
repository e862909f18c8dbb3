"""A file that is cut or changed while it is open is an error, not a crash."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.shard_writer import ShardWriter

SIZE = 4 << 20


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(SIZE, np.uint8), "b": np.ones(SIZE, np.uint8)}, path)
    return path


def test_a_file_cut_after_opening_is_refused_at_the_next_read(weights: Path) -> None:
    with open_checkpoint(weights) as checkpoint:
        os.truncate(weights, 5000)

        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.read("b")


def test_a_file_written_to_after_opening_is_refused(weights: Path) -> None:
    with open_checkpoint(weights) as checkpoint:
        with weights.open("r+b") as file:
            file.seek(9000)
            file.write(b"x")
        os.utime(weights, ns=(1, 1))

        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.read("b")


def test_a_file_cut_under_a_view_stops_the_copy_and_not_the_process(
    weights: Path, tmp_path: Path
) -> None:
    with open_checkpoint(weights) as checkpoint:
        view = checkpoint.read("b")
        os.truncate(weights, 5000)  # touching the view's pages would now be a SIGBUS

        with (
            ShardWriter(tmp_path / "out", [("b", "U8", (SIZE,))]) as writer,
            pytest.raises(CheckpointError, match="cut short while it was read"),
        ):
            writer.add("b", view)

    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_replaced_stays_the_one_that_was_opened(weights: Path) -> None:
    with open_checkpoint(weights) as checkpoint:
        other = weights.with_name("other")
        other.write_bytes(b"something else")
        other.replace(weights)

        assert bytes(checkpoint.read("b").data[:3]) == b"\1\1\1"

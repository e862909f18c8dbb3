"""A file that is cut or changed while it is open is an error, not a crash."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.shard_writer import ShardWriter
from model_store.tensor_sources import TensorSource

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


def test_a_file_cut_in_the_middle_of_a_copy_stops_the_copy_and_not_the_process(
    weights: Path, tmp_path: Path
) -> None:
    with open_checkpoint(weights) as checkpoint:
        source = checkpoint.source("b")

        def cut(_: memoryview) -> None:
            os.truncate(weights, 5000)

        with (
            ShardWriter(tmp_path / "out", [("b", "U8", (SIZE,))]) as writer,
            pytest.raises(CheckpointError, match="was changed while it was read"),
        ):
            writer.add("b", _Waiting(source), cut)

    assert list((tmp_path / "out").iterdir()) == []


class _Waiting:
    """A source that gives the watcher time to act between two pieces."""

    def __init__(self, source: TensorSource) -> None:
        self.dtype, self.shape, self.nbytes = source.dtype, source.shape, source.nbytes
        self._source = source

    def read_into(self, buffer: memoryview, start: int) -> None:
        time.sleep(0.05 if start else 0)
        self._source.read_into(buffer, start)


def test_what_was_read_is_the_readers_own(weights: Path) -> None:
    with open_checkpoint(weights) as checkpoint:
        read = checkpoint.read("b")

        os.truncate(weights, 0)  # touching pages of a mapping would now be a SIGBUS

        assert str(weights) not in Path("/proc/self/maps").read_text()
        assert bytes(read.data) == b"\1" * SIZE


def test_a_file_that_is_replaced_stays_the_one_that_was_opened(weights: Path) -> None:
    with open_checkpoint(weights) as checkpoint:
        other = weights.with_name("other")
        other.write_bytes(b"something else")
        other.replace(weights)

        assert bytes(checkpoint.read("b").data[:3]) == b"\1\1\1"

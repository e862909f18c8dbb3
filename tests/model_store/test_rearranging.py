"""Tensors that are read a piece at a time have the bytes of numpy's own splitting and stacking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.errors import CheckpointError
from model_store.rearranging import put_together, taken_apart
from model_store.strided import StridedTensor
from model_store.tensor_sources import StoredTensor, TensorSource, in_memory, same_bytes
from model_store.tensors import TensorInfo
from model_store.weight_file import WeightFile


@pytest.fixture
def stored(tmp_path: Path) -> tuple[TensorSource, NDArray[np.uint8]]:
    values = np.random.default_rng(0).integers(0, 256, 1 << 21, np.uint8)
    (tmp_path / "w").write_bytes(b"head" + values.tobytes())
    return StoredTensor(WeightFile(tmp_path / "w"), 4, "U8", values.shape), values


def read(source: TensorSource, start: int, size: int) -> bytes:
    buffer = bytearray(size)
    source.read_into(memoryview(buffer), start)
    return bytes(buffer)


@pytest.mark.parametrize("blocks", [1, 2, 64, 1 << 12, 1 << 18])  # 512 KiB down to 2 bytes
def test_parts_of_any_block_size_are_numpys(
    stored: tuple[TensorSource, NDArray[np.uint8]], blocks: int
) -> None:
    whole, values = stored
    size = len(values) // 4
    expected = values.reshape(blocks, 4, -1)

    parts = taken_apart(whole, (size,), parts=4, blocks=blocks)

    for index, part in enumerate(parts):
        assert in_memory(part).data == expected[:, index].reshape(-1).data
    assert same_bytes(put_together(parts, values.shape, blocks=blocks), whole)


@given(
    blocks=st.sampled_from([1, 2, 64, 1 << 12, 1 << 18]),
    place=st.floats(0, 1),
    size=st.integers(1, 70_000),
)
def test_any_piece_of_a_part_and_of_a_fused_tensor_can_be_asked_for(
    blocks: int, place: float, size: int
) -> None:
    values = np.arange(1 << 18, dtype=np.uint32).view(np.uint8)
    whole = in_memory(_Memory(values))
    parts = taken_apart(_Memory(values), (len(values) // 4,), parts=4, blocks=blocks)
    fused = put_together(parts, values.shape, blocks=blocks)

    for source, expected in (
        (parts[3], values.reshape(blocks, 4, -1)[:, 3].reshape(-1)),
        (fused, values),
    ):
        start = int(place * max(len(expected) - size, 0))
        assert read(source, start, size) == expected[start : start + size].tobytes()
    assert same_bytes(fused, whole)


class _Memory:
    """A source that is no RawTensor, so that nothing takes a shortcut."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.dtype, self.shape, self.nbytes = "U8", values.shape, len(values)
        self._values = values

    def read_into(self, buffer: memoryview, start: int) -> None:
        buffer[:] = self._values[start : start + len(buffer)].data


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_a_view_is_gathered_whatever_its_strides(tmp_path: Path, order: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (64, 96, 80), np.uint16)
    (tmp_path / "w").write_bytes(values.tobytes())
    view = values.transpose(order)
    strides = tuple(stride // 2 for stride in view.strides)

    with WeightFile(tmp_path / "w") as file:
        gathered = in_memory(StridedTensor(file, 0, TensorInfo("U16", view.shape), strides))

    np.testing.assert_array_equal(gathered.bits(), view)


def test_a_view_across_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    file, step = tmp_path / "w", 8 << 20
    with file.open("wb") as out:  # 800 MB of holes, and a number every 8 MiB
        for n in range(100):
            out.seek(n * step)
            out.write(bytes([n]) * 4)
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    with WeightFile(file) as opened:
        view = StridedTensor(opened, 0, TensorInfo("F32", (100, 1)), (step // 4, 1))
        clear.write_text("5")
        before = _kilobytes(status, "VmRSS")
        found = in_memory(view).bits().reshape(-1)
        grown = _kilobytes(status, "VmHWM") - before

    assert found.tolist() == [0x01010101 * n for n in range(100)]
    assert grown < 64 << 10


def _kilobytes(status: Path, kind: str) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def test_a_closed_file_is_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1234")
    with WeightFile(tmp_path / "w") as file:
        pass

    with pytest.raises(CheckpointError, match="was closed"):
        file.copy(0, 4)

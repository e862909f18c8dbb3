"""On valid files, our readers give what torch and safetensors give, whatever the tensors are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from model_store.checkpoint import open_checkpoint

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.uint16: "U16", torch.uint32: "U32",
    torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
NAMES = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and ".." not in name and name[0] not in "/\\"
)
LAX = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype: whole, or a strided view of a larger one, sometimes without data."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = draw(st.sampled_from(list(DTYPES)))
    wide = [size * draw(st.integers(1, 2)) + 1 for size in shape]
    count = torch.Size(wide).numel()
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (count * width,), dtype=torch.uint8)
    if dtype is torch.bool:
        raw %= 2
    base = raw.view(dtype).reshape(wide)
    cut = tuple(
        slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 2))) if draw(st.booleans())
        else slice(None)
        for _ in shape
    )  # fmt: skip
    view = base[cut]
    return view.permute(draw(st.permutations(range(view.dim()))))


def raw_bytes(value: torch.Tensor) -> bytes:
    flat = torch.empty(value.numel(), dtype=value.dtype)
    flat.copy_(value.reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(path: Path, expected: dict[str, torch.Tensor]) -> None:
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.names()) == set(expected)
        for name, value in expected.items():
            read = checkpoint.read(name)
            assert (read.dtype, read.shape) == (DTYPES[value.dtype], tuple(value.shape))
            assert bytes(read.data) == raw_bytes(value), name
        checkpoint.check_sums()


@LAX
@given(values=st.dictionaries(NAMES, tensors(), min_size=1, max_size=5), tie=st.booleans())
def test_torch_files_are_read_as_torch_reads_them(
    tmp_path: Path, values: dict[str, torch.Tensor], tie: bool
) -> None:
    if tie:  # two more names for one storage: all of it, and a part
        first = next(iter(values.values()))
        values |= {"tied": first, "part": first.flatten()[1:] if first.is_contiguous() else first}
    torch.save(values, tmp_path / "m.bin")

    loaded = torch.load(tmp_path / "m.bin", weights_only=True)

    assert_same(tmp_path / "m.bin", loaded)


@LAX
@given(values=st.dictionaries(NAMES, tensors(), min_size=1, max_size=5))
def test_safetensors_files_are_read_as_the_reference_reads_them(
    tmp_path: Path, values: dict[str, torch.Tensor]
) -> None:
    save_file(
        {name: value.clone().contiguous() for name, value in values.items()},
        tmp_path / "m.safetensors",
    )

    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    assert_same(tmp_path / "m.safetensors", loaded)


def test_checksums_that_torch_was_told_not_to_compute_are_no_damage(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5)}, tmp_path / "m.bin")
    finally:
        torch.serialization.set_crc32_options(True)

    assert_same(tmp_path / "m.bin", {"a": torch.arange(5)})


def test_a_damaged_storage_is_found_by_its_checksum(tmp_path: Path) -> None:
    from model_store.errors import CheckpointError

    torch.save({"a": torch.full((4,), 7, dtype=torch.uint8)}, tmp_path / "m.bin")
    content = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(content.replace(b"\7\7\7\7", b"\7\7\7\6"))

    with (
        open_checkpoint(tmp_path / "m.bin") as checkpoint,
        pytest.raises(CheckpointError, match=r"data/0.*checksum"),
    ):
        checkpoint.check_sums()

"""The integer kernels of gptqmodel; what needs the library is skipped where it is not installed.

pip install torch==2.13.0 && pip install transformers==5.23.0 gptqmodel==7.6.0 optimum
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.errors import KernelError
from qwen_vl.int4 import QuantizedFormat, QuantizedLinear
from qwen_vl.int4_kernels import LIBRARY, use_kernels, uses_kernels
from qwen_vl.loading import load_model
from qwen_vl.placement import Placement
from tests.qwen_vl import tiny_model
from tests.qwen_vl.test_int4 import pack, write_int4_folders

HERE = importlib.util.find_spec(LIBRARY) is not None
with_library = pytest.mark.skipif(not HERE, reason=f"{LIBRARY} is not installed")
without_library = pytest.mark.skipif(HERE, reason=f"{LIBRARY} is installed")
# of outputs, in half precision; the reference computes in float32
TOLERANCE = 0.01


def linear(
    *, group: int = 32, sym: bool = True, shuffled: bool = False, v1: bool = True
) -> QuantizedLinear:
    """A layer of 128 inputs and 64 outputs with drawn integers."""
    draw = torch.Generator().manual_seed(1)
    layer = QuantizedLinear(128, 64, QuantizedFormat(4, group, zeros_minus_one=v1))
    codes = torch.randint(0, 16, (128, 64), generator=draw)
    layer.qweight = pack(codes.reshape(16, 8, 64).transpose(1, 2).reshape(-1, 8)).reshape(16, 64)
    shape = layer.scales.shape
    zeros = torch.full(shape, 8) if sym else torch.randint(1, 16, shape, generator=draw)
    layer.qzeros = pack((zeros - int(v1)).reshape(-1, 8)).reshape(shape[0], -1)
    layer.scales = (torch.rand(shape, generator=draw) * 0.02 + 0.001).half()
    layer.bias = torch.randn(64, generator=draw).half()
    if shuffled:
        layer.g_idx = layer.g_idx[torch.randperm(128, generator=draw)]
    layer.check("drawn")
    return layer


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


def test_the_reference_stays_where_exactness_or_nothing_else_can_be_had(tmp_path: Path) -> None:
    int4, _ = write_int4_folders(tmp_path)

    for model in (load_model(int4, dtype="float32"), load_model(int4, kernels="reference")):
        assert isinstance(model.model.language_model.layers[0].mlp.up_proj, QuantizedLinear)
        assert not uses_kernels(model)
    with pytest.raises(KernelError, match="unknown kernels 'marlin'"):
        load_model(int4, kernels="marlin")


def test_a_model_without_integers_needs_no_kernels(tiny_folder: Path) -> None:
    assert not uses_kernels(load_model(tiny_folder, kernels=LIBRARY))


@without_library
def test_kernels_that_are_not_installed_are_missed_only_when_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    int4, _ = write_int4_folders(tmp_path)

    with caplog.at_level(logging.WARNING, logger="qwen_vl"):
        model = load_model(int4)

    assert "reference" in caplog.text
    assert not uses_kernels(model)
    with pytest.raises(KernelError, match="not installed"):
        AutoModelForCausalLM.from_pretrained(int4, kernels=LIBRARY)


@with_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "stored",
    [{}, {"sym": False}, {"shuffled": True}, {"v1": False}, {"sym": False, "v1": False}],
    ids=str,
)
def test_a_kernel_gives_what_the_reference_gives(
    stored: dict[str, Any], dtype: torch.dtype
) -> None:
    model = nn.ModuleDict({"layer": linear(**stored)})
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0)).to(dtype)

    use_kernels(model, LIBRARY, dtype=dtype)

    assert uses_kernels(model)
    with torch.inference_mode():
        assert distance(model["layer"](x), linear(**stored)(x.float())) < TOLERANCE


@with_library
def test_a_kernel_that_ignores_zero_points_is_not_believed() -> None:
    model = nn.ModuleDict({"layer": linear(sym=False, v1=False)})

    # in float32 the library chooses one that does
    with pytest.raises(KernelError, match="away from the reference"):
        use_kernels(model, LIBRARY, dtype=torch.float32)

    assert isinstance(model["layer"], QuantizedLinear)


@with_library
@pytest.mark.parametrize("layout", ["original", "native"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_folders_of_both_layouts_run_on_kernels(layout: str, dtype: str, tmp_path: Path) -> None:
    folder, _ = write_int4_folders(tmp_path, group=32)
    if layout == "native":
        load_model(folder, kernels="reference").save_pretrained(tmp_path / "native")
        folder = tmp_path / "native"
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(20)])[None]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    exact = load_model(folder, dtype="float32", kernels="reference")
    half = load_model(folder, dtype=dtype, kernels="reference")

    model = load_model(folder, dtype=dtype)

    assert uses_kernels(model)
    with torch.inference_mode():
        expected = exact(ids, pixels).logits
        allowed = 0.005 + 2 * distance(half(ids, pixels).logits, expected)
        assert distance(model(ids, pixels).logits, expected) < allowed
    with pytest.raises(KernelError, match="saved"):
        model.save_pretrained(tmp_path / "again")


@with_library
def test_weights_on_disk_stay_on_the_reference(tmp_path: Path) -> None:
    folder, _ = write_int4_folders(tmp_path, group=32)
    placement = Placement({"": "disk"}, offload_folder=tmp_path / "disk")

    assert not uses_kernels(load_model(folder, placement=placement))
    with pytest.raises(KernelError, match="disk"):
        load_model(folder, placement=placement, kernels=LIBRARY)


@with_library
def test_groups_that_no_kernel_takes_stay_on_the_reference(tmp_path: Path) -> None:
    folder, _ = write_int4_folders(tmp_path)

    assert not uses_kernels(load_model(folder))
    with pytest.raises(KernelError):
        load_model(folder, kernels=LIBRARY)

"""Every linear that was written runs through every kernel, and one that errs is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model_store.gptq_format import Version, pack
from quantization.errors import KernelDisagreesError
from quantization.kernels import Kernel, Stored, disagreements, installed
from quantization.options import GptqConfig
from quantization.solver import quantize_linear
from tests.quantization.problems import problem


def _stored(bits: int = 4, version: Version = "gptq", act_order: str = "static") -> Stored:
    layer = problem(0, rows=32)
    config = GptqConfig(bits=bits, group_size=32, act_order=act_order)
    parts = [one.numpy() for one in quantize_linear(layer.weight, layer.hessian, config)]
    packed = pack(parts[0], parts[2], parts[1], parts[3], bits=bits, version=version)
    return Stored("mlp.up_proj", packed, bits, 32, version, act_order == "dynamic")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_our_reference_agrees_with_the_definition(bits: int, version: Version) -> None:
    for act_order in ("static", "dynamic"):
        found = dict(disagreements(_stored(bits, version, act_order), installed()))

        assert found["modelferry reference"] < 1e-5


def test_a_kernel_that_ignores_the_groups_is_named() -> None:
    stored = _stored()

    def build(one: Stored) -> Callable[[Tensor], Tensor]:
        weight = torch.from_numpy(np.ones(one.sizes, dtype=np.float32))
        return lambda x: x @ weight

    broken = Kernel("of somebody", torch.float32, 0.05, build)

    with pytest.raises(KernelDisagreesError, match="of somebody") as found:
        list(disagreements(stored, [*installed(), broken]))
    assert (found.value.kernel, found.value.linear) == ("of somebody", "mlp.up_proj")


def test_a_kernel_that_cannot_is_not_asked() -> None:
    picky = Kernel("picky", torch.float32, 0.05, lambda one: None)

    assert [name for name, _ in disagreements(_stored(), [picky])] == []

"""What comes after plain GPTQ: sweeps, signed scales, dynamic order, the asymmetric target."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_store.gptq_format import dequantize, pack
from quantization.factor import factor_hessian, towards_original
from quantization.grid import Grid
from quantization.hessian import HessianAccumulator
from quantization.options import GptqConfig
from quantization.refine import Solution, refine
from quantization.solver import quantize_linear, relative_errors
from tests.quantization.problems import naive_gptq, problem

BALANCED = GptqConfig(group_size=16)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    bits=st.sampled_from((2, 3, 4)),
    group=st.sampled_from((16, 32, -1)),
    act_order=st.sampled_from(("none", "static", "dynamic")),
)
def test_sweeps_only_ever_lower_the_damped_error(
    seed: int, bits: int, group: int, act_order: str
) -> None:
    layer = problem(seed, rows=8)
    plain = GptqConfig(bits=bits, group_size=group, act_order=act_order, sweeps=0)
    damped = layer.hessian + 0.01 * layer.hessian.diagonal().mean() * torch.eye(64)

    results = [
        quantize_linear(layer.weight, layer.hessian, dataclasses.replace(plain, sweeps=sweeps))
        for sweeps in (0, 1, 4)
    ]
    errors = relative_errors(layer.weight, [result.weight() for result in results], damped)

    assert errors[1] <= errors[0] * 1.001
    assert errors[2] <= errors[1] * 1.001


def _refined_column_by_column(
    w: Tensor, hessian: Tensor, grid: Grid, solution: Solution, *, group: int, block: int
) -> Solution:
    """One sweep as the formulas of `refine` have it, every gradient made anew."""
    codes, scales = solution.codes.clone(), solution.scales.clone()
    error = grid.values(codes, scales.repeat_interleave(group, dim=0)) - w
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
        for first in range(start, stop, group):
            span = slice(first, first + group)
            c, old = codes[span] - grid.zero, scales[first // group]
            curve = (c * (hessian[span, span] @ c)).sum(0)
            new = grid.half(old - (c * (hessian[span] @ error)).sum(0) / curve)
            scales[first // group] = torch.where(new > old / 4, new, old)
            error[span] = grid.values(codes[span], scales[first // group]) - w[span]
        for k in range(start, stop):
            wanted = w[k] + error[k] - hessian[k] @ error / hessian[k, k]
            codes[k] = grid.codes(wanted, scales[k // group])
            error[k] = grid.values(codes[k], scales[k // group]) - w[k]
    return Solution(codes, scales)


@pytest.mark.parametrize("group", [32, 64])
def test_sweeps_over_several_blocks_are_those_of_the_formulas(group: int) -> None:
    layer = problem(8, rows=16, columns=320, tokens=900)
    config = GptqConfig(group_size=group, sweeps=0)
    factor, natural = factor_hessian(layer.hessian, config), torch.arange(320)
    start = quantize_linear(layer.weight, factor, config)
    w, grid = layer.weight.T.contiguous(), Grid(4)
    solution = Solution(start.codes.float(), start.scales.float())
    hessian = factor.hessian.clone()
    hessian.diagonal().copy_(factor.filled)
    wanted = _refined_column_by_column(w, hessian, grid, solution, group=group, block=128)

    refine(w, factor, natural, grid, solution, group=group, sweeps=1)

    moved = (wanted.codes != start.codes).float().mean()
    assert moved > 0.02
    # a tie that the order of sums breaks moves some codes of its row
    assert (solution.codes != wanted.codes).float().mean() < 0.02 * moved
    assert torch.allclose(solution.scales, wanted.scales, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_preset_beats_the_balanced_one(seed: int) -> None:
    layer = problem(seed, rows=64, columns=128, tokens=600)
    configs = [GptqConfig(preset=preset, group_size=32) for preset in ("balanced", "best")]

    balanced, best = (
        layer.error(quantize_linear(layer.weight, layer.hessian, config).weight())
        for config in configs
    )

    assert best < 0.97 * balanced


def test_signed_scales_lower_the_error_and_pack() -> None:
    layers = [problem(seed, rows=64) for seed in range(4)]
    signed = dataclasses.replace(BALANCED, signed_scales=True)

    errors = [
        sum(x.error(quantize_linear(x.weight, x.hessian, config).weight()) for x in layers)
        for config in (signed, BALANCED)
    ]
    result = quantize_linear(layers[0].weight, layers[0].hessian, signed)
    codes, scales, zeros, g_idx = (part.numpy() for part in result)
    packed = pack(codes, zeros, scales, g_idx, bits=4, version="gptq")

    assert errors[0] < errors[1]
    assert 0.2 < (scales < 0).mean() < 0.8
    assert not (scales == 0).any()
    values = dequantize(*packed, bits=4, version="gptq")
    assert np.array_equal(values.T, result.weight().numpy())


def test_a_dynamic_order_groups_columns_as_it_meets_them() -> None:
    layer = problem(2, rows=40)
    config = GptqConfig(
        group_size=16, act_order="dynamic", scale_search="minmax", sweeps=0, damping=0.01
    )
    order = torch.argsort(layer.hessian.diagonal(), descending=True, stable=True)

    result = quantize_linear(layer.weight, layer.hessian, config)

    groups = result.g_idx[order]
    assert groups.tolist() == [n // 16 for n in range(64)]
    # the same as going from left to right through a layer whose columns were put in that order
    expected = naive_gptq(
        layer.weight[:, order], layer.hessian[order][:, order],
        bits=4, group=16, damping=0.01, order=None,
    )  # fmt: skip
    found = result.weight()[:, order]
    assert ((found - expected).abs().amax(dim=1) < 1e-3).float().mean() >= 0.5
    assert layer.error(result.weight()) < 0.1


def test_the_asymmetric_target_undoes_what_earlier_layers_did() -> None:
    layer = problem(6, rows=16, columns=32, tokens=400)
    moved = layer.inputs + 0.2 * torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    gathered = HessianAccumulator(32)
    gathered.add(moved, layer.inputs)
    drift = gathered.drift()
    assert drift is not None

    target = towards_original(layer.weight, gathered.matrix(), drift, 0.0)

    wanted = layer.inputs @ layer.weight.T
    least = torch.linalg.lstsq(moved, wanted).solution.T
    off = [float((moved @ w.T - wanted).norm()) for w in (layer.weight, target, least)]
    assert off[2] * 0.999 < off[1] < off[2] * 1.01  # the damping costs a little
    assert off[1] < 0.98 * off[0]


def test_dead_inputs_are_counted() -> None:
    layer = problem(4)
    layer.inputs[:, [3, 40]] = 0

    assert quantize_linear(layer.weight, layer.hessian, BALANCED).dead == 2


def test_a_dead_input_weighs_as_the_others_do_on_average() -> None:
    layer = problem(4)
    layer.inputs[:, 3] = 0
    live = [n for n in range(64) if n != 3]

    factor = factor_hessian(layer.hessian, BALANCED)
    alone = factor_hessian(layer.hessian[live][:, live], BALANCED)

    weights, diagonal = factor.importance("conditional"), factor.importance("hessian")
    assert weights is not None
    assert diagonal is not None
    assert torch.allclose(weights[live], alone.conditional, rtol=1e-4)
    assert float(weights[3]) == pytest.approx(float(alone.conditional.mean()), rel=1e-4)
    assert float(diagonal[3]) == 0

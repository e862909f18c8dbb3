"""Reconsider what was solved: cyclic coordinate descent over scales and integers.

GPTQ chooses each column once, knowing what came before it and hoping that what follows can make up
for the rest. Afterwards every column can be chosen again with all others known. With G = H·E the
best real value of column k is Wₖ + Eₖ − Gₖ/Hₖₖ (QuantEase, arXiv:2309.01885); the best scale of a
group with its integers c fixed is s − (c·G)/(c·H·c). Neither ever raises tr(E·H·Eᵀ), but for the
rounding of a scale to float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.factor import Factor
from quantization.grid import Grid
from quantization.halving import FEW, halve

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Solution:
    """Codes (columns, rows) float32 and scales (groups, rows) float32; refined in place."""

    codes: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class _Block:
    """Columns [start, stop) of a problem, and what moves with them."""

    start: int
    stop: int
    hessian: Tensor  # (b, b)
    gradient: Tensor  # G of these columns, (b, rows)


def refine(
    w: Tensor,
    factor: Factor,
    frame: Tensor,
    grid: Grid,
    solution: Solution,
    *,
    group: int,
    sweeps: int,
) -> None:
    """Go over all columns `sweeps` times; `solution` is changed in place.

    Args:
        w: (columns, rows) float32, its columns in the order of `frame`.
        factor: of the layer's Hessian.
        frame: (columns,) natural index of each column of `w`.
        grid: the integers.
        solution: where to start from.
        group: columns that share a scale, neighbours in `frame`.
        sweeps: how often.
    """
    hessian = factor.hessian[frame][:, frame]
    hessian.diagonal().copy_(factor.filled[frame])
    columns = w.shape[0]
    scales = solution.scales.repeat_interleave(group, dim=0)
    error = grid.values(solution.codes, scales) - w
    step = max(group, _BLOCK // group * group) if group < columns else _BLOCK
    for _ in range(sweeps):
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            block = _Block(
                start, stop, hessian[start:stop, start:stop], hessian[start:stop] @ error
            )
            if group < columns:
                for first in range(start, stop, group):
                    _rescale(block, first, group, grid, solution, error)
            _recode(block, group, w, grid, solution, error)


def _rescale(
    block: _Block, first: int, group: int, grid: Grid, solution: Solution, error: Tensor
) -> None:
    inner = slice(first - block.start, first - block.start + group)
    outer, number = slice(first, first + group), first // group
    c = solution.codes[outer] - grid.zero
    slope = (c * block.gradient[inner]).sum(dim=0)
    curve = (c * (block.hessian[inner, inner] @ c)).sum(dim=0)
    old = solution.scales[number]
    new = grid.half(torch.where(curve > 0, old - slope / curve, old))
    # a scale that would vanish or turn round has lost its way: its group keeps the one it had
    new = torch.where(new * old > old * old / 4, new, old)
    change = (new - old) * c
    solution.scales[number] = new
    error[outer] += change
    block.gradient.addmm_(block.hessian[:, inner], change)


def _recode(
    block: _Block, group: int, w: Tensor, grid: Grid, solution: Solution, error: Tensor
) -> None:
    inverse = block.hessian.diagonal().reciprocal().tolist()
    change = torch.empty_like(block.gradient)
    mine = slice(block.start, block.stop)
    # views made once: making them anew costs as much as the arithmetic
    of_column = zip(w[mine], error[mine], solution.codes[mine], block.gradient, change, strict=True)

    def run(start: int, stop: int) -> None:
        for here in range(start, stop):
            weight, missed, code, slope, moved = next(of_column)
            scale = solution.scales[(block.start + here) // group]
            torch.add(missed, slope, alpha=-inverse[here], out=moved).add_(weight)
            grid.steps(moved, scale, out=code)
            torch.addcmul(-weight, code, scale, out=moved)
            code.add_(grid.zero)
            moved.sub_(missed)
            missed.add_(moved)
            told = slice(here + 1, stop)
            block.gradient[told].addr_(block.hessian[told, here], moved)

    def pass_on(start: int, middle: int, stop: int) -> None:
        told, done = slice(middle, stop), slice(start, middle)
        block.gradient[told].addmm_(block.hessian[told, done], change[done])

    halve(len(change), FEW, run, pass_on)

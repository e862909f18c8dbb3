"""GPTQ for one linear layer (Frantar et al. 2022, arXiv:2210.17323), without an inverse.

The layer's error is tr(E·H·Eᵀ), E = Q − W. With H = V·D·Vᵀ (see factor.py) that is
Σₖ Dₖ·‖Eₖ + E₍<k₎·V₍<k,k₎‖², and going from left to right the best choice for column k rounds
Wₖ − E₍<k₎·V₍<k,k₎. These are GPTQ's choices (its Cholesky factor of H⁻¹ is D^(−½)·V⁻¹).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.errors import GroupSizeError, UnusableTensorError
from quantization.factor import Factor, factor_hessian
from quantization.grid import Grid, group_scales
from quantization.halving import FEW, halve
from quantization.options import GptqConfig
from quantization.refine import Solution, refine

__all__ = [
    "Factor", "QuantizedLinear", "check_weight", "factor_hessian", "quantize_linear",
    "relative_errors", "round_linear",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """One layer as integers; iterates as (codes, scales, zeros, g_idx).

    `codes` (columns, rows) int32, `scales` (groups, rows) float16, `zeros` (groups, rows) int32,
    `g_idx` (columns,) int32: the orientation of the files, where inputs come first.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    damping: float  # what was used in the end; 0 for plain rounding
    dead: int = 0  # input columns that no sample activated

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.codes, self.scales, self.zeros, self.g_idx))

    def weight(self) -> Tensor:
        """The dequantized weight, (rows, columns) float32."""
        group = self.g_idx.long()
        codes = (self.codes - self.zeros[group]).float()
        return (self.scales[group].float() * codes).T.contiguous()


@torch.no_grad()
def quantize_linear(
    weight: Tensor, hessian: Tensor | Factor, config: GptqConfig, *, name: str = "this layer"
) -> QuantizedLinear:
    """Quantize one weight; the result unpacks as codes, scales, zeros, g_idx.

    Args:
        weight: (rows, columns) of any float type; not modified.
        hessian: (columns, columns) float32, symmetric, not modified; or its `factor_hessian`,
            which layers with the same input can share.
        config: bits, group size, order, damping, scale search and sweeps.
        name: the layer, for error messages.

    Raises:
        GroupSizeError: the group size does not divide the columns.
        SingularHessianError: no factor up to the largest damping.
        UnusableTensorError: a number that is not finite, or too large for float16 scales.
    """
    columns = check_weight(weight, config, name)
    factor = hessian if isinstance(hessian, Factor) else factor_hessian(hessian, config, name=name)
    if factor.order.numel() != columns:
        raise ValueError(f"{columns} columns do not go with {factor.order.numel()} of the Hessian")
    group = config.group_of(columns)
    natural = torch.arange(columns, device=weight.device)
    # the order in which groups are neighbours: that of the file, unless the order is dynamic
    frame = factor.order if config.act_order == "dynamic" else natural
    w = weight.T.float()[frame].contiguous()
    grid = Grid(config.bits, config.signed_scales)
    solution = _solve(w, factor, frame, grid, config)
    if config.sweeps:
        refine(w, factor, frame, grid, solution, group=group, sweeps=config.sweeps)
    codes, place = torch.empty_like(solution.codes), torch.empty_like(natural)
    codes[frame], place[frame] = solution.codes, natural
    return _result(codes, solution.scales, place // group, grid, factor)


@torch.no_grad()
def round_linear(
    weight: Tensor, config: GptqConfig, *, name: str = "this layer"
) -> QuantizedLinear:
    """Quantize one weight by rounding to nearest, with minmax scales: the baseline."""
    columns = check_weight(weight, config, name)
    grid, w, group = Grid(config.bits), weight.T.float(), config.group_of(columns)
    scales = _fixed_scales(grid, w, group, None, search=False)
    codes = grid.codes(w, scales.repeat_interleave(group, dim=0))
    place = torch.arange(columns, device=weight.device) // group
    return _result(codes, scales, place, grid, None)


def check_weight(weight: Tensor, config: GptqConfig, name: str) -> int:
    """Return a weight's columns when `config` fits it; see `quantize_linear` for errors."""
    columns = weight.shape[1]
    if columns % config.group_of(columns):
        raise GroupSizeError(f"{name} has {columns} inputs: no multiple of {config.group_size}")
    if not bool(torch.isfinite(weight).all()):
        raise UnusableTensorError(f"the weight of {name} is not finite")
    return columns


def _solve(w: Tensor, factor: Factor, frame: Tensor, grid: Grid, config: GptqConfig) -> Solution:
    """Solve for `w`, (columns, rows), whose columns lie in the order of `frame`."""
    columns = w.shape[0]
    group = config.group_of(columns)
    search = config.scale_search != "minmax"
    importance = factor.importance(config.scale_search)
    importance = None if importance is None else importance[frame]
    # solved in the order they lie in: a group's scales are chosen when it is reached, errors so
    # far included; in another order a group is never whole before the end
    fixed = config.act_order == "static" or group == columns
    scales = (
        _fixed_scales(grid, w, group, importance, search=search)
        if fixed
        else torch.empty(columns // group, w.shape[1], device=w.device)
    )
    path = factor.order if config.act_order == "static" else torch.arange(columns, device=w.device)
    V = factor.upper  # noqa: N806  the factor's name in the formula
    w = w[path] if config.act_order == "static" else w
    groups = (path // group).tolist()
    # a column that is still to come has the code nought, so its error is all of the weight
    steps, error, target = torch.empty_like(w), -w, w.clone()
    # views made once: making them anew costs as much as the arithmetic; those of scales that are
    # not fixed are filled by `run`, before the group's first column
    of_column = zip(steps, error, target, [scales[number] for number in groups], strict=True)

    def run(start: int, stop: int) -> None:
        for k in range(start, stop):
            if not fixed and k % group == 0:
                span = slice(k, k + group)
                compensated = w[span] + _spread(V[span, span], target[span] - w[span])
                part = None if importance is None else importance[span]
                scales[k // group] = group_scales(grid, compensated, part, search=search)
            step, missed, wanted, scale = next(of_column)
            grid.steps(wanted, scale, out=step)
            missed.addcmul_(step, scale)
            target[k + 1 : stop].addr_(V[k, k + 1 : stop], missed, alpha=-1)

    def pass_on(start: int, middle: int, stop: int) -> None:
        target[middle:stop].addmm_(V[start:middle, middle:stop].T, error[start:middle], alpha=-1)

    halve(columns, FEW if fixed else group, run, pass_on)
    placed = torch.empty_like(steps)
    placed[path] = steps.add_(grid.zero)
    return Solution(placed, scales)


def _spread(V: Tensor, drift: Tensor) -> Tensor:  # noqa: N803
    """What GPTQ would hold in memory now: all later columns of a group share the compensation."""
    spread: Tensor = torch.linalg.solve_triangular(V.T, drift, upper=False, unitriangular=True)
    return spread


def _fixed_scales(
    grid: Grid, w: Tensor, group: int, importance: Tensor | None, *, search: bool
) -> Tensor:
    parts = [slice(start, start + group) for start in range(0, w.shape[0], group)]
    return torch.stack(
        [
            group_scales(
                grid, w[part], None if importance is None else importance[part], search=search
            )
            for part in parts
        ]
    )


def _result(
    codes: Tensor, scales: Tensor, place: Tensor, grid: Grid, factor: Factor | None
) -> QuantizedLinear:
    zeros = torch.full(scales.shape, grid.zero, dtype=torch.int32, device=codes.device)
    damping, dead = (0.0, 0) if factor is None else (factor.damping, factor.dead)
    whole = (codes.to(torch.int32), scales.half(), zeros, place.to(torch.int32))
    return QuantizedLinear(*whole, damping, dead)


@torch.no_grad()
def relative_errors(weight: Tensor, candidates: Sequence[Tensor], hessian: Tensor) -> list[float]:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ), E = Q − W: relative output errors on the calibration set.

    Args:
        weight: W, (rows, columns).
        candidates: several Q, shaped as W.
        hessian: H, (columns, columns).

    Returns:
        One for each candidate; 0 where the output is zero with or without quantization.
    """
    w = weight.float()
    whole = float(((w @ hessian) * w).sum())
    errors = [candidate.float() - w for candidate in candidates]
    return [float(((e @ hessian) * e).sum()) / whole if whole > 0 else 0.0 for e in errors]

"""GPTQ for one linear layer (Frantar et al. 2022, arXiv:2210.17323), without an inverse.

The layer's error is tr(E·H·Eᵀ), E = Q − W. Factor H = V·D·Vᵀ, V unit upper triangular, by one
Cholesky of the flipped H. Then the error is Σₖ Dₖ·‖Eₖ + E₍<k₎·V₍<k,k₎‖², and going from left to
right the best choice for column k rounds Wₖ − E₍<k₎·V₍<k,k₎. These are GPTQ's choices (its
Cholesky factor of H⁻¹ is D^(−½)·V⁻¹), with a quarter of the factoring work and none of the
inverse's rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.errors import GroupSizeError, SingularHessianError, UnusableTensorError
from quantization.grid import Grid, group_scales
from quantization.options import GptqConfig

_BLOCK = 128  # columns whose compensation stays in cache
_MOST_DAMPING = 1.0
_LEAST_RAISE = 0.001


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

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.codes, self.scales, self.zeros, self.g_idx))

    def weight(self) -> Tensor:
        """The dequantized weight, (rows, columns) float32."""
        group = self.g_idx.long()
        codes = (self.codes - self.zeros[group]).float()
        return (self.scales[group].float() * codes).T.contiguous()


@dataclass(frozen=True, slots=True)
class Factor:
    """V·D·Vᵀ of a damped Hessian whose rows and columns were put into `order`."""

    order: Tensor  # (columns,) int64
    upper: Tensor  # V, (columns, columns), unit upper triangular
    importance: Tensor  # diagonal of the undamped Hessian, in natural order
    damping: float


@torch.no_grad()
def quantize_linear(
    weight: Tensor, hessian: Tensor | Factor, config: GptqConfig, *, name: str = "this layer"
) -> QuantizedLinear:
    """Quantize one weight; the result unpacks as codes, scales, zeros, g_idx.

    Args:
        weight: (rows, columns) of any float type; not modified.
        hessian: (columns, columns) float32, symmetric, not modified; or its `factor_hessian`,
            which layers with the same input can share.
        config: bits, group size, order, damping and scale search.
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
    codes, scales = _solve(weight.T.float().contiguous(), factor, config)
    return _result(codes, scales, config, damping=factor.damping)


@torch.no_grad()
def round_linear(
    weight: Tensor, config: GptqConfig, *, name: str = "this layer"
) -> QuantizedLinear:
    """Quantize one weight by rounding to nearest, with minmax scales: the baseline."""
    columns = check_weight(weight, config, name)
    grid, w, group = Grid(config.bits), weight.T.float(), config.group_of(columns)
    scales = _fixed_scales(grid, w, group, None, search=False)
    codes = grid.codes(w, scales.repeat_interleave(group, dim=0))
    return _result(codes, scales, config, damping=0.0)


def check_weight(weight: Tensor, config: GptqConfig, name: str) -> int:
    """Return a weight's columns when `config` fits it; see `quantize_linear` for errors."""
    columns = weight.shape[1]
    if columns % config.group_of(columns):
        raise GroupSizeError(f"{name} has {columns} inputs: no multiple of {config.group_size}")
    if not bool(torch.isfinite(weight).all()):
        raise UnusableTensorError(f"the weight of {name} is not finite")
    return columns


@torch.no_grad()
def factor_hessian(hessian: Tensor, config: GptqConfig, *, name: str = "this layer") -> Factor:
    """Order, damp and factor a Hessian; damping doubles until there is a factor.

    A column that no sample activated has a zero diagonal; it gets the mean, and is thereby
    rounded to nearest: its weights mean something to inputs that the samples lack.

    Raises:
        SingularHessianError: no factor up to the largest damping.
        UnusableTensorError: an activation was not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise UnusableTensorError(f"the calibration inputs of {name} are not finite")
    diagonal = hessian.diagonal().float()
    live = diagonal > 0
    mean = float(diagonal[live].mean()) if bool(live.any()) else 1.0
    filled = torch.where(live, diagonal, mean)
    order = torch.arange(len(filled), device=hessian.device)
    if config.act_order == "static":
        order = torch.argsort(filled, descending=True, stable=True)
    ordered = hessian.float()[order][:, order]
    damping = config.damping
    while True:
        ordered.diagonal().copy_(filled[order] + damping * mean)
        # J·H·J = L·Lᵀ gives H = (J·L·J)·(J·L·J)ᵀ, and J·L·J is upper triangular
        lower, failed = torch.linalg.cholesky_ex(ordered.flip(0, 1))
        if not int(failed):
            upper = lower.flip(0, 1)
            return Factor(order, upper / upper.diagonal(), diagonal, damping)
        if damping >= _MOST_DAMPING:
            raise SingularHessianError(name, damping=damping)
        damping = min(max(2 * damping, _LEAST_RAISE), _MOST_DAMPING)


def _solve(w: Tensor, factor: Factor, config: GptqConfig) -> tuple[Tensor, Tensor]:
    """Return (columns, rows) codes and (groups, rows) scales for transposed weights `w`."""
    columns, grid = w.shape[0], Grid(config.bits)
    group = config.group_of(columns)
    search = config.scale_search != "minmax"
    importance = factor.importance if config.scale_search == "hessian" else None
    # without an order, a group's scales are chosen when it is reached, errors so far included
    fixed = config.act_order == "static" or group == columns
    scales = (
        _fixed_scales(grid, w, group, importance, search=search)
        if fixed
        else torch.empty(columns // group, w.shape[1], device=w.device)
    )
    order, V = factor.order, factor.upper  # noqa: N806  the factor's name in the formula
    w = w[order]
    codes, error = torch.empty_like(w), torch.zeros_like(w)
    step = max(group, _BLOCK // group * group) if group < columns else _BLOCK
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        target = w[start:stop] - V[:start, start:stop].T @ error[:start]
        for k in range(start, stop):
            here = k - start
            if not fixed and k % group == 0:
                # what GPTQ would hold in memory now: all later columns share the compensation
                span = slice(k, k + group)
                drift = target[here : here + group] - w[span]
                spread = torch.linalg.solve_triangular(
                    V[span, span].T, drift, upper=False, unitriangular=True
                )
                part = None if importance is None else importance[span]
                scales[k // group] = group_scales(grid, w[span] + spread, part, search=search)
            scale = scales[int(order[k]) // group]
            codes[k] = grid.codes(target[here], scale)
            error[k] = grid.values(codes[k], scale) - w[k]
            target[here + 1 :].addr_(V[k, k + 1 : stop], error[k], alpha=-1)
    natural = torch.empty_like(codes)
    natural[order] = codes
    return natural, scales


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
    codes: Tensor, scales: Tensor, config: GptqConfig, *, damping: float
) -> QuantizedLinear:
    columns = codes.shape[0]
    g_idx = torch.arange(columns, dtype=torch.int32, device=codes.device) // config.group_of(
        columns
    )
    zeros = torch.full(scales.shape, Grid(config.bits).zero, dtype=torch.int32, device=codes.device)
    return QuantizedLinear(codes.to(torch.int32), scales.half(), zeros, g_idx, damping)


@torch.no_grad()
def relative_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """tr(E·H·Eᵀ) / tr(W·H·Wᵀ): the layer's relative output error on the calibration set."""
    w, error = weight.float(), quantized.float() - weight.float()
    whole = float(((w @ hessian) * w).sum())
    return float(((error @ hessian) * error).sum()) / whole if whole > 0 else 0.0

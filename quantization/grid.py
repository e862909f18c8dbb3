"""Symmetric integer grids: the float16 scale of each group of columns, and rounding to it.

The grid of a scale s is s · (code − zero), code in 0 … 2^bits − 1, zero = 2^(bits − 1): what
`gptq` files of version 1 can hold. Scales are rounded to float16 *before* they are used, so that
the error of that rounding is seen, and compensated, like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.errors import UnusableTensorError

# what a scale is of the widest, which clips nothing; finer steps gained under 1 % of the error
_SHRINK = tuple(1 - 0.04 * step for step in range(15))
_SMALLEST = 2.0**-24  # the least float16 above zero
_LARGEST = 65504.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers of one width; with `signed`, a negative scale turns them round."""

    bits: int
    signed: bool = False

    @property
    def zero(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Round to nearest, ties to even; float32 codes, shaped as the two broadcast."""
        return torch.round(weight / scale).add_(self.zero).clamp_(0, self.top)

    def steps(self, weight: Tensor, scale: Tensor, *, out: Tensor) -> None:
        """Round to nearest, ties to even, into `out`: codes − zero, shaped as the two broadcast."""
        torch.div(weight, scale, out=out).round_().clamp_(-self.zero, self.top - self.zero)

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        return scale * (codes - self.zero)

    def half(self, scale: Tensor) -> Tensor:
        """The nearest float16 that is not zero, as float32; positive unless signed."""
        rounded = scale.half().float()
        if not self.signed:
            return rounded.clamp_(min=_SMALLEST)
        least = torch.where(scale < 0, -_SMALLEST, _SMALLEST)
        return torch.where(rounded.abs() < _SMALLEST, least, rounded)

    def widest(self, columns: Tensor) -> Tensor:
        """The scale of each row that clips nothing, of (group, rows) weights."""
        if not self.signed:
            return columns.abs().amax(dim=0) * (2 / self.top)
        low, high = columns.amin(dim=0), columns.amax(dim=0)
        # the grid reaches one step further down than up: that side goes to the larger weights
        turned = torch.where(-low >= high, 1.0, -1.0)
        return turned * torch.maximum(-low, high) / self.zero


def group_scales(grid: Grid, columns: Tensor, importance: Tensor | None, *, search: bool) -> Tensor:
    """Choose one scale per output row for one group of columns.

    Args:
        grid: the integers to round to.
        columns: (group, rows) float32: the transposed weights of the group.
        importance: (group,), the weight of each column's squared error; None counts all alike.
        search: try smaller scales, which clip the largest weights, and keep the least error.

    Returns:
        (rows,) float32, exactly representable in float16, never zero.

    Raises:
        UnusableTensorError: the weights are too large for a float16 scale.
    """
    widest = grid.widest(columns)
    if not bool((widest.abs() <= _LARGEST).all()):
        raise UnusableTensorError("a weight is not finite, or too large for a float16 scale")
    widest = torch.where(widest == 0, 1.0, widest)
    if not search:
        return grid.half(widest)
    best, least = grid.half(widest), torch.full_like(widest, torch.inf)
    error = torch.empty_like(columns)  # one buffer that stays in cache
    for shrink in _SHRINK:
        scale = grid.half(widest * shrink)
        torch.mul(columns, scale.reciprocal(), out=error)
        error.round_().clamp_(-grid.zero, grid.top - grid.zero)
        error.mul_(scale).sub_(columns)
        loss = error.square_().sum(dim=0) if importance is None else importance @ error.square_()
        better = loss < least
        best, least = torch.where(better, scale, best), torch.where(better, loss, least)
    return best

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
    """The integers of one width."""

    bits: int

    @property
    def zero(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    def codes(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Round to nearest, ties to even; float32 codes, shaped as the two broadcast."""
        return torch.round(weight / scale).add_(self.zero).clamp_(0, self.top)

    def values(self, codes: Tensor, scale: Tensor) -> Tensor:
        return scale * (codes - self.zero)


def group_scales(grid: Grid, columns: Tensor, importance: Tensor | None, *, search: bool) -> Tensor:
    """Choose one scale per output row for one group of columns.

    Args:
        grid: the integers to round to.
        columns: (group, rows) float32: the transposed weights of the group.
        importance: (group,), the weight of each column's squared error; None counts all alike.
        search: try smaller scales, which clip the largest weights, and keep the least error.

    Returns:
        (rows,) float32, positive, exactly representable in float16.

    Raises:
        UnusableTensorError: the weights are too large for a float16 scale.
    """
    largest = columns.abs().amax(dim=0)
    widest = largest * (2 / grid.top)
    if not bool((widest <= _LARGEST).all()):
        raise UnusableTensorError("a weight is not finite, or too large for a float16 scale")
    widest = torch.where(largest == 0, 1.0, widest)
    if not search:
        return _half(widest)
    best, least = _half(widest), torch.full_like(widest, torch.inf)
    error = torch.empty_like(columns)  # one buffer that stays in cache
    for shrink in _SHRINK:
        scale = _half(widest * shrink)
        torch.div(columns, scale, out=error)
        error.round_().clamp_(-grid.zero, grid.top - grid.zero)
        error.mul_(scale).sub_(columns).square_()
        loss = error.sum(dim=0) if importance is None else importance @ error
        better = loss < least
        best, least = torch.where(better, scale, best), torch.where(better, loss, least)
    return best


def _half(scale: Tensor) -> Tensor:
    return scale.half().float().clamp_(min=_SMALLEST)

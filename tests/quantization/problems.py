"""Random layers with correlated inputs, and a naive GPTQ to compare the fast one with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.hessian import HessianAccumulator


@dataclass(frozen=True, slots=True)
class Problem:
    weight: Tensor  # (rows, columns)
    inputs: Tensor  # (tokens, columns)

    @property
    def hessian(self) -> Tensor:
        accumulator = HessianAccumulator(self.inputs.shape[1])
        accumulator.add(self.inputs)
        return accumulator.matrix()

    def error(self, quantized: Tensor) -> float:
        """Relative error of the layer's output."""
        change = self.inputs @ (quantized - self.weight).T
        return float(change.square().sum() / (self.inputs @ self.weight.T).square().sum())


def problem(seed: int, *, rows: int = 24, columns: int = 64, tokens: int = 200) -> Problem:
    """A random weight, and inputs that are correlated and of unequal size, as activations are."""
    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=dice)
    mix = torch.randn(columns, columns, generator=dice) / columns**0.5
    spread = torch.exp(torch.randn(columns, generator=dice))
    inputs = torch.randn(tokens, columns, generator=dice) @ (torch.eye(columns) + mix) * spread
    return Problem(weight, inputs)


def naive_gptq(
    weight: Tensor, hessian: Tensor, *, bits: int, group: int, damping: float, order: Tensor | None
) -> Tensor:
    """The textbook: float64, the inverse itself, one column at a time; minmax scales.

    With an order, scales come from the weights as they were; without one, a group's scale comes
    from its weights as compensated when it is reached.
    """
    w, top, zero = weight.double().clone(), 2**bits - 1, 2 ** (bits - 1)
    path = torch.arange(w.shape[1]) if order is None else order
    h = hessian.double().clone()
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    scales = {g: _scale(w[:, g : g + group], top) for g in range(0, w.shape[1], group)}
    left = path.tolist()
    while left:
        inverse = torch.linalg.inv(h[left][:, left])
        column = left[0]
        start = column // group * group
        if order is None and column == start:
            scales[start] = _scale(w[:, start : start + group], top)
        code = torch.clamp(torch.round(w[:, column] / scales[start]) + zero, 0, top)
        rounded = scales[start] * (code - zero)
        error = (w[:, column] - rounded) / inverse[0, 0]
        w[:, left[1:]] -= torch.outer(error, inverse[0, 1:])
        w[:, column] = rounded
        left.pop(0)
    return w.float()


def _scale(columns: Tensor, top: int) -> Tensor:
    return (2 * columns.abs().amax(dim=1) / top).half().double()

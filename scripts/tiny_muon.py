"""Muon: momentum whose matrix steps are orthogonalised by five Newton-Schulz rounds.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the quintic
iteration X ← aX + (bA + cA²)X with A = XXᵀ, on equal shapes together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


def orthogonalised(gradients: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, roughly: (n, rows, columns) in and out."""
    x = gradients / (gradients.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(_ROUNDS):
        a = x @ x.mT
        x = _A * x + (_B * a + _C * a @ a) @ x
    out: Tensor = x.mT if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; weights of more than two axes are taken as matrices."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is taken
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.flatten(1).shape].append(matrix)
            for shape, matrices in alike.items():
                steps = orthogonalised(
                    torch.stack([self._momentum(one, group["momentum"]) for one in matrices])
                )
                scale = -group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for matrix, step in zip(matrices, steps, strict=True):
                    matrix.add_(step.view_as(matrix), alpha=scale)

    def _momentum(self, matrix: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[matrix]
        gradient = matrix.grad
        assert gradient is not None  # noqa: S101  the caller looked
        buffer: Tensor = state.setdefault("momentum", torch.zeros_like(matrix))
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum).flatten(1)

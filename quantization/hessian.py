"""The layer Hessian of GPTQ (Frantar et al. 2022, arXiv:2210.17323)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantization.errors import CalibrationError


class HessianAccumulator:
    """Gathers 2·mean(xxᵀ) over calibration rows, in float32; how rows are batched is no matter.

    A plain sum is kept and divided once: a running mean would round at every batch.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._sum = torch.zeros(columns, columns, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Take in one batch, shape (..., columns), of any float type."""
        x = inputs.detach().reshape(-1, self._sum.shape[0]).float()
        self.rows += x.shape[0]
        self._sum.addmm_(x.T, x)

    def matrix(self) -> Tensor:
        """The Hessian, (columns, columns).

        Raises:
            CalibrationError: no row was added.
        """
        if self.rows == 0:
            raise CalibrationError("no calibration row reached a layer")
        return self._sum * (2 / self.rows)

"""What GPTQ needs to know of a layer's inputs (Frantar et al. 2022, arXiv:2210.17323)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantization.errors import CalibrationError

_BLOCK = 256  # columns; only blocks on and above the diagonal are computed


class HessianAccumulator:
    """Gathers 2·mean(xxᵀ) over calibration rows, in float32; how rows are batched is no matter.

    A plain sum is kept and divided once: a running mean would round at every batch. The sum is
    symmetric, so only its upper half is computed, block by block: about half of the work.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self._sum = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self._drift: Tensor | None = None

    def add(self, inputs: Tensor, unquantized: Tensor | None = None) -> None:
        """Take in one batch, shape (..., columns), of any float type.

        Args:
            inputs: what the layer gets in the quantized model.
            unquantized: what it gets in the original one, row by row, for `drift`.
        """
        columns = self._sum.shape[0]
        x = inputs.detach().reshape(-1, columns).float()
        self.rows += x.shape[0]
        for start in range(0, columns, _BLOCK):
            block = self._sum[start : start + _BLOCK, start:]
            block.addmm_(x[:, start : start + _BLOCK].T, x[:, start:])
        if unquantized is not None:
            away = unquantized.detach().reshape(-1, columns).float() - x
            if self._drift is None:
                self._drift = torch.zeros_like(self._sum)
            self._drift.addmm_(away.T, x)

    def matrix(self) -> Tensor:
        """The Hessian, (columns, columns).

        Raises:
            CalibrationError: no row was added.
        """
        if self.rows == 0:
            raise CalibrationError("no calibration row reached a layer")
        whole = self._sum.triu()
        whole += self._sum.triu(1).T  # what the blocks on the diagonal have below it is dropped
        return whole.mul_(2 / self.rows)

    def drift(self) -> Tensor | None:
        """2·mean((x̃ − x)xᵀ), x̃ of the original model: how far inputs have moved, or None."""
        return None if self._drift is None else self._drift * (2 / self.rows)

"""Damp, order and factor a layer's Hessian: H = V·D·Vᵀ, V unit upper triangular.

One Cholesky of the flipped H gives the factor that GPTQ needs, without its inverse: a quarter of
the work, and better conditioned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.errors import SingularHessianError, UnusableTensorError
from quantization.options import GptqConfig

_MOST_DAMPING = 1.0
_LEAST_RAISE = 0.001


@dataclass(frozen=True, slots=True)
class Factor:
    """V·D·Vᵀ of a damped Hessian whose rows and columns were put into `order`."""

    order: Tensor  # (columns,) int64
    upper: Tensor  # V, (columns, columns), unit upper triangular
    hessian: Tensor  # (columns, columns) as it came, in natural order; not modified
    filled: Tensor  # (columns,) what the damped Hessian has on its diagonal, in natural order
    conditional: Tensor  # (columns,) D, in natural order
    damping: float
    dead: int  # columns that no sample activated

    def importance(self, search: str) -> Tensor | None:
        """What a column's squared error weighs in a search for scales, in natural order.

        The diagonal of H weighs what an error costs if nothing answers it; D what is left once
        all later columns have made up for it as well as real numbers can, and that is what the
        solver's loss is a sum of. D is that of the damped H; a column that no sample activated
        weighs as much in it as the others do on average, and nothing by the diagonal.

        Args:
            search: `GptqConfig.scale_search`.

        Returns:
            (columns,), or None where all columns weigh the same.
        """
        if search == "conditional":
            return self.conditional
        return self.hessian.diagonal() if search == "hessian" else None


@torch.no_grad()
def factor_hessian(hessian: Tensor, config: GptqConfig, *, name: str = "this layer") -> Factor:
    """Order, damp and factor a Hessian; damping doubles until there is a factor.

    A column that no sample activated has a zero diagonal; it gets the mean, and is thereby
    rounded to nearest: its weights mean something to inputs that the samples lack.

    Args:
        hessian: (columns, columns) float32, symmetric; not modified.
        config: damping and order.
        name: the layer, for error messages.

    Raises:
        SingularHessianError: no factor up to the largest damping.
        UnusableTensorError: an activation was not finite.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise UnusableTensorError(f"the calibration inputs of {name} are not finite")
    hessian = hessian.float()
    diagonal = hessian.diagonal()
    live = diagonal > 0
    mean = float(diagonal[live].mean()) if bool(live.any()) else 1.0
    filled = torch.where(live, diagonal, mean)
    order = torch.arange(len(filled), device=hessian.device)
    if config.act_order != "none":
        order = torch.argsort(filled, descending=True, stable=True)
    # J·H·J = L·Lᵀ gives H = (J·L·J)·(J·L·J)ᵀ, and J·L·J is upper triangular
    backwards = order.flip(0)
    flipped = hessian[backwards][:, backwards]
    damping = config.damping
    while True:
        flipped.diagonal().copy_((filled + damping * mean)[backwards])
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not int(failed):
            upper = lower.flip(0, 1)
            conditional = torch.empty_like(filled)
            conditional[order] = upper.diagonal().square()
            if bool(live.any()):  # the filled diagonal is far above any D: it would rule its group
                conditional[~live] = conditional[live].mean()
            upper.div_(upper.diagonal().clone())
            dead = int((~live).sum())
            filled = filled + damping * mean
            return Factor(order, upper, hessian, filled, conditional, damping, dead)
        if damping >= _MOST_DAMPING:
            raise SingularHessianError(name, damping=damping)
        damping = min(max(2 * damping, _LEAST_RAISE), _MOST_DAMPING)


@torch.no_grad()
def towards_original(weight: Tensor, hessian: Tensor, drift: Tensor, damping: float) -> Tensor:
    """Where the weight would be moved to if it need not be integers (GPTAQ, arXiv:2504.02692).

    Inputs of a quantized model are x, those of the original x̃. ‖Q·x − W·x̃‖² is, up to a constant,
    ‖(Q − W′)·x‖² with W′ = W + W·E[(x̃ − x)xᵀ]·H⁻¹: asymmetric calibration is the usual problem
    for another weight.

    Args:
        weight: (rows, columns); not modified.
        hessian: (columns, columns) float32; not modified.
        drift: `HessianAccumulator.drift()`.
        damping: added to the diagonal as a fraction of its mean.
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += max(damping, _LEAST_RAISE) * diagonal.mean()
    lower = torch.linalg.cholesky(damped)
    moved: Tensor = torch.cholesky_solve((weight.float() @ drift).T, lower).T
    return weight.float() + moved

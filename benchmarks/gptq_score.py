"""How far a quantized model is from its original, on tokens that no tool has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Score:
    """Means over the held-out tokens."""

    layer_error: float  # mean over linears of ‖X(Q−W)ᵀ‖² / ‖XWᵀ‖², X of the original model
    logits: float  # ‖candidate − reference‖ / ‖reference‖
    kl: float  # nats per token, reference from candidate


@torch.no_grad()
def score(model: Any, weights: Mapping[str, Tensor], held_out: Tensor) -> Score:
    """Measure `weights` in place of the model's own; the model is put back afterwards."""
    named = {
        name: one for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and f"{name}.weight" in weights
    }  # fmt: skip
    if not named or len(named) != len(weights):
        raise SystemExit(f"{len(weights)} quantized weights, {len(named)} linears to put them in")
    errors: dict[str, list[float]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
            change = nn.functional.linear(args[0], weights[f"{name}.weight"] - module.weight)
            whole = nn.functional.linear(args[0], module.weight)
            sums = errors.setdefault(name, [0.0, 0.0])
            sums[0] += float(change.square().sum())
            sums[1] += float(whole.square().sum())

        return hook

    handles = [one.register_forward_pre_hook(watch(name)) for name, one in named.items()]
    reference = model(held_out).logits
    for handle in handles:
        handle.remove()
    own = {name: one.weight.data for name, one in named.items()}
    for name, one in named.items():
        one.weight.data = weights[f"{name}.weight"]
    candidate = model(held_out).logits
    for name, one in named.items():
        one.weight.data = own[name]
    log_p, log_q = reference.log_softmax(-1), candidate.log_softmax(-1)
    return Score(
        layer_error=sum(a / b for a, b in errors.values()) / len(errors),
        logits=float((candidate - reference).norm() / reference.norm()),
        kl=float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
    )

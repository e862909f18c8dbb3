"""Round to nearest: what a candidate's linear layers would be without any care taken.

The reference, rounded at the candidate's own bits and group sizes, is the yardstick beside it: a
quantization that is no better than this was not worth its calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quantization.options import GptqConfig
from quantization.solver import round_linear
from verification.folders import Subject
from verification.native_view import NativeView


@dataclass(frozen=True, slots=True)
class RoundingPlan:
    """Which modules a candidate has packed, and how finely."""

    bits: int
    groups: Mapping[str, int]  # module -> columns that share a scale

    def key(self) -> dict[str, object]:
        return {"bits": self.bits, "groups": dict(self.groups)}


def rounding_plan(candidate: Subject) -> RoundingPlan | None:
    """Read it from the candidate's packed tensors; None where nothing is packed."""
    groups: dict[str, int] = {}
    per = 32 // candidate.form.bits
    with NativeView(candidate) as view:
        for name in sorted(view.infos):
            module, _, part = name.rpartition(".")
            if part != "qweight" or f"{module}.scales" not in view.infos:
                continue
            columns = view.infos[name].shape[0] * per
            count = view.infos[f"{module}.scales"].shape[0]
            if count and columns % count == 0:
                groups[module] = columns // count
    return RoundingPlan(candidate.form.bits, groups) if groups else None


@torch.no_grad()
def round_in_place(model: nn.Module, plan: RoundingPlan) -> None:
    """Replace the weights of the planned modules by their rounded values.

    Raises:
        QuantizationError: a weight that is not finite.
    """
    for name, group in plan.groups.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # noqa: S101  the tensor level has paired the names
        config = GptqConfig(method="rtn", bits=plan.bits, group_size=group, scale_search="minmax")
        rounded = round_linear(linear.weight.float(), config, name=name).weight()
        linear.weight.copy_(rounded.to(linear.weight))

"""bfloat16 on a CPU that has no units for it.

Such a CPU multiplies bf16 matrices one number at a time, many times slower than float32. What
units for bf16 do is simple: they multiply exactly, sum in float32, and round once at the end. The
same comes out of float32 products of bf16 numbers, rounded, so figures need not wait for a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten
_PRODUCTS = frozenset(
    {
        _ATEN.mm,
        _ATEN.addmm,
        _ATEN.bmm,
        _ATEN.baddbmm,
        _ATEN.convolution,
        _ATEN._scaled_dot_product_flash_attention_for_cpu,  # what attention becomes
    }
)


def has_bf16_units() -> bool:
    """Whether torch multiplies bf16 matrices on this CPU with units made for it."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # it has no public name


class Float32Sums(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, products of bf16 tensors are summed in float32 and rounded once.

    Attention counts as one product: its weights are not rounded before they weigh the values.
    Everything else is computed by torch's own bf16 code.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func.overloadpacket not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **given)
        wide, named = tree_map_only(Tensor, _widened, (args, given))
        found = func(*wide, **named)
        if isinstance(found, tuple):  # attention, and sums that only its backward pass needs
            return found[0].bfloat16(), *found[1:]
        return found.bfloat16()


def _widened(one: Tensor) -> Tensor:
    return one.float() if one.dtype == torch.bfloat16 else one

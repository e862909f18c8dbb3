"""bfloat16 without units for it: products are exact in float32, and rounded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the field's name

from scripts.tiny_bf16 import Float32Sums

Product = Callable[..., Tensor]
PRODUCTS: dict[str, tuple[Product, tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, ((7, 64), (48, 64), (48,))),
    "matrix": (torch.matmul, ((7, 64), (64, 48))),
    "batch": (torch.matmul, ((3, 7, 64), (3, 64, 48))),
    "patches": (F.conv2d, ((2, 3, 28, 28), (16, 3, 14, 14))),
    "attention": (F.scaled_dot_product_attention, ((1, 2, 9, 16),) * 3),
}


def _operands(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(shape).bfloat16() for shape in shapes]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_the_exact_one_rounded_once(name: str) -> None:
    product, shapes = PRODUCTS[name]
    operands = _operands(shapes)
    exact = product(*(one.double() for one in operands))

    with Float32Sums():
        found = product(*operands)

    assert found.dtype == torch.bfloat16
    # a sum in float32 may fall on the other side of a tie; anything else is off by more
    assert (found == exact.bfloat16()).float().mean() > 0.99
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-5)


def test_torch_alone_comes_to_the_same_but_for_a_rounding() -> None:
    product, shapes = PRODUCTS["linear"]
    operands = _operands(shapes)

    with Float32Sums():
        found = product(*operands)

    assert torch.allclose(found.float(), product(*operands).float(), rtol=2**-7, atol=1e-2)


def test_other_types_and_other_steps_are_left_alone() -> None:
    x = torch.randn(5, 5)
    expected = x @ x, x.double() @ x.double(), x.bfloat16().exp()

    with Float32Sums():
        found = x @ x, x.double() @ x.double(), x.bfloat16().exp()

    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)

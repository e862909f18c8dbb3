"""Forward passes that advance together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from quantization.errors import UnsupportedModelError
from quantization.turns import meet, together


def _pass(start: float, places: tuple[str, ...], seen: list[tuple[str, float]]) -> Tensor:
    x = torch.tensor(start)
    for place in places:
        seen.append((place, float(x)))
        x = meet(place, x)
    return x


def _doubled(place: str, brought: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
    total = sum(float(one) for one in brought)
    return lambda number, mine: mine * 2 + total


def test_all_arrive_before_any_goes_on() -> None:
    seen: list[tuple[str, float]] = []

    results = list(together([partial(_pass, n, ("a", "b"), seen) for n in (1.0, 2.0)], _doubled))

    assert seen == [("a", 1), ("a", 2), ("b", 5), ("b", 7)]
    assert [float(one) for one in results] == [22, 26]


def test_passes_that_take_other_ways_are_refused() -> None:
    for ways in (("a",), ("b",)), (("a",), ("a", "b")), (("a", "b"), ("a",)):
        with pytest.raises(UnsupportedModelError, match="not every calibration sample"):
            list(together([partial(_pass, 1.0, way, []) for way in ways], _doubled))


def test_an_error_in_a_pass_ends_all_of_them() -> None:
    def failing() -> Tensor:
        meet("a", torch.tensor(1.0))
        raise ZeroDivisionError

    works: list[Callable[[], Tensor]] = [partial(_pass, 1.0, ("a", "b"), []), failing]
    with pytest.raises(ZeroDivisionError):
        list(together(works, _doubled))


def test_an_error_while_all_wait_ends_all_of_them() -> None:
    def broken(place: str, brought: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(together([partial(_pass, 1.0, ("a",), [])] * 3, broken))

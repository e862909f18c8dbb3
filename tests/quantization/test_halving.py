"""Columns in halves: every column is run once, in order, and knows of all before it."""

from __future__ import annotations

import pytest

from quantization.halving import halve


@pytest.mark.parametrize("few", [1, 16, 32, 100])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100, 256, 1000])
def test_every_column_is_run_once_in_order_and_told_of_all_before_it(
    columns: int, few: int
) -> None:
    done: list[int] = []
    told: list[set[int]] = [set() for _ in range(columns)]

    def run(start: int, stop: int) -> None:
        assert start % few == 0
        assert stop - start <= few
        for column in range(start, stop):
            assert told[column] == set(range(start))
            done.append(column)

    def pass_on(start: int, middle: int, stop: int) -> None:
        news = set(range(start, middle))
        assert news <= set(done)
        for column in range(middle, stop):
            assert not told[column] & news
            told[column] |= news

    halve(columns, few, run, pass_on)

    assert done == list(range(columns))

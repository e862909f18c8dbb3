"""How the page on quantization divides our figures by those of the peers."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.quantization_page import ratios, render

_ERRORS = {"gptqmodel:default": 4.0, "gptqmodel:best": 2.0, "llmcompressor:default": 3.0,
           "llmcompressor:mse": 2.5, "ours:best": 1.0}  # fmt: skip
_SECONDS = {"gptqmodel:default": 10.0, "gptqmodel:best": 40.0, "llmcompressor:default": 5.0,
            "llmcompressor:mse": 8.0, "ours:best": 4.0}  # fmt: skip


def _runs(*, without: tuple[str, int] = ("", 0)) -> list[dict[str, Any]]:
    return [
        {"shape": "one", "seed": seed, "contender": name, "layer_error": error * (seed + 1),
         "cpu_s": _SECONDS[name]}
        for seed in range(2)
        for name, error in _ERRORS.items()
        if (name, seed) != without
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("measure", "peers", "ratio"),
    [
        ("layer error", "the best of any format", 1 / 2),
        ("layer error", "gptqmodel's default", 1 / 4),
        ("CPU s", "the fastest peer", 4 / 5),
        ("CPU s", "the peer with the least error", 4 / 40),  # the slowest, chosen by its error
    ],
)
def test_ours_is_divided_by_the_peer_that_is_named(measure: str, peers: str, ratio: float) -> None:
    assert ratios(_runs(), "one", "best", measure, peers) == pytest.approx([ratio, ratio])


def test_a_seed_that_a_peer_did_not_run_does_not_count() -> None:
    runs = _runs(without=("gptqmodel:best", 1))

    assert ratios(runs, "one", "best", "layer error", "the best of any format") == [0.5]
    assert ratios(runs, "other", "best", "layer error", "the best of any format") == []


def test_a_missed_aim_is_in_bold() -> None:
    rows = [line for line in render().splitlines() if "layer error, the best of any format" in line]

    for row in rows:
        aim, *cells = [cell.strip() for cell in row.split("|")[3:-1]]
        for cell in cells:
            mean = float(cell.split(" ")[0].strip("*"))
            assert cell.startswith("**") == (mean > float(aim)), row
    assert len(rows) == 2

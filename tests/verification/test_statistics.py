"""Paired statistics against numbers of scipy and statsmodels, and against simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.intervals import bootstrap_percentile
from verification.statistics import (
    binomial_two_sided,
    detectable_difference,
    holm,
    mcnemar_exact,
    paired_difference,
    paired_t,
    pairs_needed,
)

_GOLDEN = Path(__file__).parents[1] / "assets" / "verification" / "paired_stats.json"


@pytest.mark.parametrize("case", range(4))
def test_mcnemar_and_the_difference_agree_with_the_golden_numbers(case: int) -> None:
    golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))["mcnemar"][case]
    ours, theirs = golden["base_correct"], golden["cand_correct"]

    found = mcnemar_exact(ours, theirs)
    change = paired_difference(ours, theirs, [str(i) for i in range(len(ours))], seed=0)

    assert found.lost == golden["base_to_wrong"]
    assert found.gained == golden["wrong_to_right"]
    assert found.p_value == pytest.approx(golden["mcnemar_exact_p"], rel=1e-12)
    assert change.mean == pytest.approx(golden["delta"], abs=1e-12)
    if golden["delta_sem"]:
        # the bootstrap's bound is the normal one, within its own noise
        assert change.lower == pytest.approx(
            golden["delta"] - 1.645 * golden["delta_sem"], abs=0.25 * golden["delta_sem"] + 0.01
        )


def test_the_paired_t_agrees_with_the_golden_numbers() -> None:
    golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))["paired_scores"]

    found = paired_t(golden["base"], golden["cand"])

    assert found.mean_diff == pytest.approx(golden["mean_diff"], rel=1e-12)
    assert found.sem == pytest.approx(golden["sem"], rel=1e-12)
    assert found.t == pytest.approx(golden["t"], rel=1e-12)


def test_the_numbers_needed_are_those_of_the_literature() -> None:
    assert [pairs_needed(margin, 0.08) for margin in (0.01, 0.02, 0.03)] == [4947, 1237, 550]
    assert detectable_difference(550, 0.08) == pytest.approx(0.03, abs=1e-4)


def test_fewer_than_six_discordant_pairs_can_never_be_significant() -> None:
    assert binomial_two_sided(0, 5) > 0.05
    assert binomial_two_sided(0, 6) < 0.05
    assert binomial_two_sided(0, 0) == 1


def test_a_test_of_thousands_of_pairs_does_not_overflow() -> None:
    assert binomial_two_sided(2500, 5000) == 1
    assert 0 < binomial_two_sided(2300, 5000) < 1e-7


def test_holm_steps_down_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_a_p_value_smaller_and_the_least_is_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)

    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    assert min(adjusted) <= min(1.0, len(p) * min(p)) + 1e-12


def test_no_change_at_all_is_not_certainty() -> None:
    few = paired_difference([1] * 100, [1] * 100, [str(i) for i in range(100)], seed=0)
    many = paired_difference([1] * 300, [1] * 300, [str(i) for i in range(300)], seed=0)

    assert few.mean == 0
    assert few.lower == pytest.approx(-3 / 100, rel=0.02)  # the rule of three
    assert -0.01 < many.lower < 0


def test_questions_about_one_picture_count_as_one() -> None:
    ours, theirs = [1] * 400, [0] * 40 + [1] * 360
    alone = paired_difference(ours, theirs, [str(i) for i in range(400)], seed=0)
    together = paired_difference(ours, theirs, [str(i // 20) for i in range(400)], seed=0)

    assert alone.mean == together.mean == -0.1
    assert together.lower < alone.lower - 0.03


def test_the_bound_covers_as_often_as_it_says() -> None:
    dice = np.random.default_rng(7)
    covered = 0
    for trial in range(200):
        change = dice.choice([-1, 0, 1], size=300, p=[0.05, 0.92, 0.03])
        found = paired_difference(np.zeros(300), change, [str(i) for i in range(300)], seed=trial)
        covered += found.lower <= -0.02

    assert 180 <= covered <= 199  # 95 % of 200, give or take three standard errors


def test_a_percentile_of_whole_groups_is_wider_than_one_of_single_values() -> None:
    dice = np.random.default_rng(3)
    groups = [np.full(20, value) for value in dice.exponential(size=60)]
    single = [np.array([value]) for group in groups for value in group]

    wide = bootstrap_percentile(groups, 90, seed=0)
    narrow = bootstrap_percentile(single, 90, seed=0)

    assert wide[1] - wide[0] > narrow[1] - narrow[0]
    assert not math.isnan(wide[0])

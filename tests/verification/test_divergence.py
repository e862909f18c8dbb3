"""Divergences and intervals against numbers from torch, scipy and statsmodels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from verification.divergence import divergence
from verification.intervals import bootstrap_ratio, wilson_interval

_GOLDEN = Path(__file__).parents[1] / "assets" / "verification" / "divergence_stats.json"


def test_the_summary_agrees_with_the_golden_numbers() -> None:
    golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))

    found = divergence(golden["base_logits"], golden["cand_logits"], golden["labels"]).json()

    for name, wanted in golden["expected"].items():
        assert np.allclose(found[name], wanted, rtol=1e-9, atol=1e-12), name


def test_equal_logits_are_exactly_no_distance() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))

    found = divergence(logits, logits.clone(), torch.arange(7))

    assert found.kld_max == 0
    assert found.max_abs_delta == 0
    assert found.top1_agreement == 1
    assert found.ppl_ratio == 1


def test_positions_without_a_label_do_not_count() -> None:
    reference = torch.zeros(3, 4)
    candidate = torch.zeros(3, 4)
    candidate[1, 0] = 9.0

    found = divergence(reference, candidate, [0, -100, 2])

    assert found.n == 2
    assert found.kld_max == 0


def test_logits_that_are_not_finite_are_refused() -> None:
    bad = torch.full((1, 4), torch.nan)

    with pytest.raises(ValueError, match="finite"):
        divergence(torch.zeros(1, 4), bad, [0])


def test_the_bootstrap_draws_dialogues_and_so_sees_that_tokens_hang_together() -> None:
    together = bootstrap_ratio([10.0, 0.0] * 10, [10] * 20, seed=0)
    apart = bootstrap_ratio([1.0, 0.0] * 100, [1] * 200, seed=0)

    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_a_share_of_none_or_all_has_an_interval_that_touches_the_end() -> None:
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1

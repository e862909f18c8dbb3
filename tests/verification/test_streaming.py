"""The running sums against the plain formula, on the golden logits and on drawn ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verification.divergence import divergence
from verification.streaming import RunningSums, Scores, score_streaming

_GOLDEN = Path(__file__).parents[1] / "assets" / "verification" / "divergence_stats.json"


class _Head:
    """A head that notes how much of it was in memory at once."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.widest = 0

    @property
    def vocabulary(self) -> int:
        return len(self._weight)

    def rows(self, start: int, stop: int) -> Tensor:
        self.widest = max(self.widest, stop - start)
        return self._weight[start:stop]


def _streamed(reference: Tensor, candidate: Tensor, labels: Tensor, width: int) -> Scores:
    sums = RunningSums(labels)
    for start in range(0, reference.shape[1], width):
        part = slice(start, start + width)
        sums.add(reference[:, part], candidate[:, part], start)
    return sums.scores()


@pytest.mark.parametrize("width", [1, 4, 17, 100])
def test_the_golden_numbers_come_out_of_slices_of_any_width(width: int) -> None:
    golden = json.loads(_GOLDEN.read_text(encoding="utf-8"))
    a, b = (torch.tensor(golden[k], dtype=torch.float64) for k in ("base_logits", "cand_logits"))

    found = _streamed(a, b, torch.tensor(golden["labels"]), width)

    wanted = golden["expected"]
    assert np.allclose(found.kl, wanted["kld_per_token"], rtol=1e-9, atol=1e-12)
    assert np.percentile(found.kl, 99) == pytest.approx(wanted["kld_p99"], rel=1e-9)
    assert found.same_top1.mean() == pytest.approx(wanted["top1_agreement"])
    change = (found.nll_candidate - found.nll_reference).mean()
    assert change == pytest.approx(wanted["mean_ln_ppl_ratio"], rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1e-3, 1.0, 40.0]))
def test_slices_agree_with_the_whole(seed: int, width: int, spread: float) -> None:
    dice = torch.Generator().manual_seed(seed)
    a = torch.randn(5, 23, generator=dice) * spread
    b = a + torch.randn(5, 23, generator=dice) * 0.1
    labels = torch.randint(0, 23, (5,), generator=dice)

    streamed, whole = _streamed(a, b, labels, width), divergence(a, b, labels)

    assert np.allclose(streamed.kl, whole.kld_per_token, rtol=1e-8, atol=1e-12)
    assert (streamed.same_top1 == whole.same_top1).all()
    assert np.allclose(streamed.nll_reference, whole.nll_base, atol=1e-9)
    assert np.allclose(streamed.nll_candidate, whole.nll_cand, atol=1e-9)
    assert streamed.max_delta.max() == pytest.approx(whole.max_abs_delta)


def test_equal_states_and_heads_give_exactly_nothing() -> None:
    hidden, weight = torch.randn(9, 6), torch.randn(50, 6)

    found = score_streaming(
        (hidden, _Head(weight)), (hidden.clone(), _Head(weight.clone())), torch.arange(9), width=7
    )

    assert found.kl.max() == 0
    assert found.max_delta.max() == 0
    assert found.bit_equal.all()


def test_one_bit_in_the_head_is_seen() -> None:
    hidden, weight = torch.randn(9, 6), torch.randn(50, 6)
    other = weight.clone()
    other[41, 3] = torch.nextafter(other[41, 3], torch.tensor(9.0))
    hidden[4] = torch.eye(6)[3]  # its logit is that weight: no sum can round the bit away

    found = score_streaming(
        (hidden, _Head(weight)), (hidden, _Head(other)), torch.arange(9), width=7
    )

    assert not found.bit_equal[4]


def test_no_more_than_a_slice_of_the_vocabulary_is_made() -> None:
    head = _Head(torch.randn(1000, 6))

    score_streaming((torch.randn(4, 6), head), (torch.randn(4, 6), head), torch.arange(4), width=64)

    assert head.widest == 64


def test_logits_that_are_not_finite_are_refused() -> None:
    bad = torch.full((1, 4), torch.nan)

    with pytest.raises(ValueError, match="finite"):
        _streamed(torch.zeros(1, 4), bad, torch.tensor([0]), 2)

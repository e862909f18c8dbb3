"""Multiple choice by likelihood, and SEED-Bench's frames, against the original scripts' numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from verification.choice_metrics import (
    ChoiceRow,
    choice_accuracy,
    choice_losses,
    frame_indices,
    token_nlls,
)
from verification.metrics import multiple_choice

_ASSETS = Path(__file__).parents[1] / "assets" / "verification"


def _asset(name: str) -> Any:
    return json.loads((_ASSETS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(batch: dict[str, Any]) -> list[ChoiceRow]:
    options = iter(zip(batch["logits_for_input[:, :-1]"], batch["padded_input"], strict=True))
    rows = []
    for item in batch["items"]:
        nlls = []
        for length in item["target_lengths"]:
            logits, tokens = next(options)
            nlls.append(token_nlls(logits[-length:], tokens[-length:]))
        rows.append(ChoiceRow(nlls, item["answer"]))
    return rows


@pytest.mark.parametrize("batch", range(3))
def test_the_losses_and_the_choices_agree(batch: int) -> None:
    golden = _asset("multiple_choice_likelihood")["batches"][batch]

    rows = _rows(golden)

    for row, wanted in zip(rows, golden["expected_choice_loss"], strict=True):
        assert choice_losses(row.nlls) == pytest.approx(wanted, abs=1e-6)  # theirs are float32
        assert multiple_choice(row.nlls) == wanted.index(min(wanted))
    right = [multiple_choice(row.nlls) == row.answer for row in rows]
    assert right == [bool(x) for x in golden["expected_correct"]]
    assert choice_accuracy(rows) == sum(golden["expected_correct"]) / len(rows)


def test_a_long_option_is_not_punished_for_its_length() -> None:
    assert multiple_choice([[1.0], [0.8, 0.8, 0.8]]) == 1


def test_of_equal_options_the_first_is_chosen() -> None:
    assert multiple_choice([[2.0], [1.0], [1.0, 1.0]]) == 1


def test_accuracy_is_the_share_of_right_choices() -> None:
    nlls = [[0.1], [0.2], [0.3]]

    assert choice_accuracy([ChoiceRow(nlls, i) for i in (0, 0, 1, 2)]) == 0.5


def test_an_option_without_a_loss_wins_in_2023_and_is_refused_today() -> None:
    nlls = [[0.1], [math.nan], [0.2]]

    assert multiple_choice(nlls, profile="qwen-2023") == 1
    with pytest.raises(ValueError, match="nothing to choose by"):
        multiple_choice(nlls)
    with pytest.raises(ValueError, match="nothing to choose by"):
        multiple_choice([[0.1], []])
    with pytest.raises(ValueError, match="needs options"):
        multiple_choice([])


def test_an_answer_must_be_one_of_the_options() -> None:
    with pytest.raises(ValueError, match="answer 2 is none of 2"):
        ChoiceRow([[0.1], [0.2]], 2)
    with pytest.raises(ValueError, match="answer -1"):
        ChoiceRow([[0.1], [0.2]], -1)


def test_token_losses_want_one_row_per_token_of_the_vocabulary() -> None:
    assert token_nlls([[0.0, 0.0]], [1]) == pytest.approx([math.log(2)])
    assert token_nlls([[1000.0, 0.0]], [1]) == pytest.approx([1000.0])
    with pytest.raises(ValueError, match="for 2 tokens"):
        token_nlls([[0.0, 0.0]], [1, 0])
    with pytest.raises(ValueError, match="vocabulary of 2"):
        token_nlls([[0.0, 0.0]], [2])
    with pytest.raises(ValueError, match="vocabulary of 2"):
        token_nlls([[0.0, 0.0]], [-1])


def test_the_frames_agree() -> None:
    cases = _asset("seed_frames")["cases"]

    for case in cases:
        found = frame_indices(case["num_frames"], segments=case["num_segments"])
        assert found == case["expected"], case
    with pytest.raises(ValueError, match="0 segments"):
        frame_indices(4, segments=0)
    with pytest.raises(ValueError, match="of 0 frames"):
        frame_indices(0, segments=4)

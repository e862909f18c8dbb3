"""The metrics against numbers that the original scripts gave."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from verification.answer_metrics import (
    anls,
    exact_match,
    gqa_answer,
    mean,
    relaxed_accuracy,
    vqa_accuracy,
    vqa_normalized,
    vqa_punctuation,
)
from verification.box_metrics import grounding
from verification.caption_metrics import captions, word_scores
from verification.mme_metric import MmeRow, mme, said

_GOLDENS = Path(__file__).resolve().parents[2].parent / "shared" / "metrics_goldens"
pytestmark = pytest.mark.shared


def _golden(name: str) -> Any:
    if not _GOLDENS.is_dir():
        pytest.skip("the golden data are not beside this checkout")
    return json.loads((_GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


def test_anls_agrees() -> None:
    golden = _golden("anls")

    found = [anls(case["prediction"], case["answers"]) for case in golden["cases"]]

    assert found == pytest.approx([case["expected"] for case in golden["cases"]])
    assert mean(found) == pytest.approx(golden["expected_overall"])


def test_relaxed_accuracy_agrees_in_both_orders() -> None:
    for case in _golden("relaxed_accuracy")["cases"]:
        pair = case["prediction"], case["annotation"]
        assert relaxed_accuracy(*pair, profile="qwen-2023") is case["expected_qwen"], case
        assert relaxed_accuracy(*pair) is case["expected_pix2struct_order"], case


def test_exact_match_and_the_cutting_of_gqa_agree() -> None:
    golden = _golden("exact_match_gqa")

    for case in golden["exact_match"]:
        found = exact_match(case["prediction"], case["annotation"], profile="qwen-2023")
        assert found == case["expected"], case
    for case in golden["gqa_postprocess"]:
        assert gqa_answer(case["in"]) == case["out"], case


def test_boxes_agree() -> None:
    golden = _golden("grounding")

    hits = 0
    for case in golden["cases"]:
        size = (case["hw"][0], case["hw"][1])
        found = grounding(case["answer"], case["gt_bbox"], size, profile="qwen-2023")
        assert found.box == pytest.approx(case["expected_box_px"], rel=1e-6), case
        if case["expected_iou"] is None:
            assert math.isnan(found.iou)
        else:
            assert found.iou == pytest.approx(case["expected_iou"], rel=1e-5), case
        assert found.hit is case["hit"], case
        hits += found.hit
    assert (hits, len(golden["cases"])) == (golden["expected_correct"], golden["expected_total"])


def test_vqa_accuracy_and_its_normalization_agree_in_both_profiles() -> None:
    golden = _golden("vqa_accuracy")

    for case in golden["normalise"]:
        assert vqa_punctuation(case["in"]) == case["after_punct"], case
        assert vqa_normalized(case["in"]) == case["out"], case
    for case in golden["questions"]:
        pair = case["prediction"], case["answers"]
        assert vqa_accuracy(*pair, profile="qwen-2023") == pytest.approx(case["expected_qwen"]), (
            case
        )
        assert vqa_accuracy(*pair) == pytest.approx(case["expected_official_2021"]), case


def test_mme_agrees_and_the_published_tasks_add_up() -> None:
    golden = _golden("mme")
    rows = {task: [MmeRow(*row) for row in found] for task, found in golden["rows"].items()}

    found = mme(rows, profile="qwen-2023")

    assert found.tasks == pytest.approx(golden["expected_task"])
    assert found.perception == pytest.approx(golden["expected_total"]["Perception"])
    assert found.cognition == pytest.approx(golden["expected_total"]["Cognition"])
    for case in golden["parse"]:
        assert said(case["in"], profile="qwen-2023") == case["out"], case
    published = _golden("mme_published")
    whole = type(found)(published["task"])
    assert whole.perception == pytest.approx(published["total"]["Perception"])
    assert whole.cognition == pytest.approx(published["total"]["Cognition"])


def test_captions_of_other_people_agree() -> None:
    golden = _golden("caption_abstract50s")
    items, wanted = golden["items"], golden["expected_per_image"]

    found = captions([item["caption"] for item in items], [item["references"] for item in items])

    for name, score in found.named().items():
        assert score == pytest.approx(golden["expected"][name], rel=1e-12), name
    assert [one.cider for one in found.images] == pytest.approx(wanted["CIDEr"], rel=1e-12)
    assert [one.rouge_l for one in found.images] == pytest.approx(wanted["ROUGE_L"], rel=1e-12)
    assert [one.bleu[3] for one in found.images] == pytest.approx(wanted["Bleu_4"], rel=1e-12)


def test_published_scores_of_words_between_spaces_agree() -> None:
    golden = _golden("caption_nlgeval")
    said = [found[0].split() for found in golden["candidates"].values()]
    people = [[text.split() for text in texts] for texts in golden["references"].values()]

    for name, score in word_scores(said, people).named().items():
        assert score == pytest.approx(golden["pycocoevalcap_1.2"][name], rel=1e-12), name
        assert score == pytest.approx(golden["published"][name], abs=1e-6), name


def test_a_know_was_a_no_in_2023() -> None:
    assert said("know", profile="qwen-2023") == "no"
    assert said("know", profile="standard") == "other"


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ValueError, match="profile is 'mine'"):
        anls("a", ["a"], profile="mine")  # type: ignore[arg-type]  # the point

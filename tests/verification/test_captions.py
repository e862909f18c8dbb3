"""Captions' words and scores against numbers that pycocoevalcap gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.caption_metrics import common_subsequence, word_scores
from verification.caption_words import caption_words
from verification.metrics import captions

_ASSETS = Path(__file__).parents[1] / "assets" / "verification"
_NOT_OURS = {"METEOR"}


def _asset(name: str) -> Any:
    return json.loads((_ASSETS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_words_are_those_of_the_java_tokenizer() -> None:
    cases = _asset("caption_words")["cases"]

    wrong = {text: caption_words(text) for text, cut in cases if caption_words(text) != cut.split()}

    assert len(cases) > 100
    assert wrong == {}


def test_the_words_of_the_scored_captions_agree() -> None:
    golden = _asset("caption_made_up")

    for item in golden["items"]:
        key = str(item["image_id"])
        assert [" ".join(caption_words(item["caption"]))] == golden["tokenized_candidates"][key]
        cut = [" ".join(caption_words(text)) for text in item["references"]]
        assert cut == golden["tokenized_references"][key]


@given(st.text("abnt.,'’-/&!?:;\"0127 ABST", max_size=40))
def test_no_letter_and_no_digit_is_lost(text: str) -> None:
    kept = "".join(caption_words(text))

    assert [c for c in kept if c.isalnum()] == [c for c in text.lower() if c.isalnum()]


def test_an_abbreviation_keeps_its_full_stop_only_while_the_sentence_goes_on() -> None:
    assert caption_words("Taken in Jan. by Mr. Lee.") == ["taken", "in", "jan.", "by", "mr.", "lee"]
    assert caption_words("Taken in Jan.") == ["taken", "in", "jan"]
    assert caption_words("Plan B. Then home") == ["plan", "b", "then", "home"]


def test_the_scores_agree_for_the_corpus_and_for_every_image() -> None:
    golden = _asset("caption_made_up")
    items, wanted = golden["items"], golden["expected_per_image"]

    found = captions([item["caption"] for item in items], [item["references"] for item in items])

    expected = {name: x for name, x in golden["expected"].items() if name not in _NOT_OURS}
    assert found.named() == pytest.approx(expected, rel=1e-12)
    assert [one.cider for one in found.images] == pytest.approx(wanted["CIDEr"], rel=1e-12)
    assert [one.rouge_l for one in found.images] == pytest.approx(wanted["ROUGE_L"], rel=1e-12)
    assert [one.bleu[3] for one in found.images] == pytest.approx(wanted["Bleu_4"], rel=1e-12)


def test_a_caption_that_says_what_people_say_scores_highest() -> None:
    people = [["A red bus on a wet road."], ["Two cats asleep on a sofa."]]

    found = captions(["a red bus on a wet road", "two cats asleep on a sofa"], people)
    exchanged = captions(["two cats asleep on a sofa", "a red bus on a wet road"], people)

    assert found.bleu == pytest.approx((1, 1, 1, 1))
    assert (found.rouge_l, found.cider) == pytest.approx((1, 10))
    assert exchanged.cider < 1


def test_repeating_a_word_that_people_use_once_earns_nothing() -> None:
    found = word_scores([["bus"] * 4], [[["a", "bus", "passes", "by"]]])

    assert found.bleu[0] == pytest.approx(0.25)


def test_both_profiles_agree() -> None:
    said, people = ["a dog", "a cat"], [["The dog."], ["A cat sits."]]

    assert captions(said, people, profile="qwen-2023") == captions(said, people)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="need images"):
        captions([], [])
    with pytest.raises(ValueError, match="every image references"):
        captions(["a dog"], [[]])
    with pytest.raises(ValueError, match="shorter"):
        captions(["a dog", "a cat"], [["a dog"]])
    with pytest.raises(ValueError, match="profile is 'mine'"):
        captions(["a dog"], [["a dog"]], profile="mine")  # type: ignore[arg-type]  # the point


def _naive_subsequence(a: str, b: str) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + _naive_subsequence(a[1:], b[1:])
    return max(_naive_subsequence(a[1:], b), _naive_subsequence(a, b[1:]))


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_common_subsequence_is_the_naive_one(a: str, b: str) -> None:
    assert common_subsequence(a, b) == _naive_subsequence(a, b)

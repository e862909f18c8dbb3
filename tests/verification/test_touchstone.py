"""TouchStone's grades and means against the original script's, and what it is strict about."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import IncompleteEvidenceError
from verification.errors import JudgePromptError
from verification.judge_prompt import JudgePrompt, read_template
from verification.touchstone import Round, TouchStoneRow, grades, questions, score

_ASSET = Path(__file__).parents[1] / "assets" / "verification" / "touchstone.json"


def _golden() -> Any:
    return json.loads(_ASSET.read_text(encoding="utf-8"))


def _row(index: int = 0, **changes: str) -> TouchStoneRow:
    record = {
        "index": index, "question": "What is it?", "human_annotation": "A red bus.",
        "gpt4_ha_answer": "the reference", "category": "text", "response": "the model",
    }  # fmt: skip
    return TouchStoneRow.of(record | changes)


def _in_order(one: Round) -> list[Any]:
    """A round as the original script writes it down: the answer shown first, first."""
    if one.reference is None or one.model is None:
        return [0, 0, "error"]
    pair = [one.reference, one.model]
    return [*(pair if one.number == 1 else pair[::-1]), "ok"]


def test_replies_are_read_as_the_original_reads_them() -> None:
    for case in _golden()["parse"]:
        if isinstance(case["out"], str):
            with pytest.raises(ValueError, match=r"two grades|could not convert"):
                grades(case["reply"], profile="qwen-2023")
        else:
            assert list(grades(case["reply"], profile="qwen-2023")) == case["out"], case


def test_rounds_and_means_agree_with_the_original() -> None:
    golden = _golden()

    found = score(golden["rows"], golden["judge_reply"], profile="qwen-2023")

    assert asdict(found.overall) == pytest.approx(
        {
            "model": golden["expected_overall"]["m"],
            "reference": golden["expected_overall"]["gpt4-ha"],
            "rounds": 17,
        }
    )
    assert set(found.categories) == set(golden["expected_by_category"])
    for name, wanted in golden["expected_by_category"].items():
        means = found.categories[name]
        assert (means.model, means.reference) == pytest.approx((wanted["m"], wanted["gpt4-ha"]))
    wanted_rounds = [
        row[f"round{number}"] for row in golden["expected_rounds"] for number in (1, 2)
    ]
    assert [_in_order(one) for one in found.rounds] == wanted_rounds
    assert found.dropped == 7


def test_the_standard_profile_drops_a_round_that_is_out_of_range() -> None:
    golden = _golden()

    loose = score(golden["rows"], golden["judge_reply"], profile="qwen-2023")
    strict = score(golden["rows"], golden["judge_reply"])

    assert (loose.dropped, strict.dropped) == (7, 8)  # "-1 5"
    assert [one.state for one in strict.rounds if one.index == "10"] == ["unreadable", "ok"]


@pytest.mark.parametrize(
    "reply", ["11 0", "-1 5", "nan 5", "5 inf", "0.9 5", "10.1 5", "８ 7", "1_0 5", "1e0 5", "+5 5"]
)
def test_what_python_reads_as_a_number_may_be_no_grade(reply: str) -> None:
    assert len(grades(reply, profile="qwen-2023")) == 2
    with pytest.raises(ValueError, match=r"plain number|from 1 to 10"):
        grades(reply)


def test_reasons_after_the_first_line_are_no_grades() -> None:
    assert grades("8 7.5\nAnswer 1 is right.") == (8.0, 7.5)
    with pytest.raises(ValueError, match="two grades"):
        grades("8 7.5\nAnswer 1 is right.", profile="qwen-2023")


def test_the_second_round_is_exchanged_back() -> None:
    found = score([_row()], {"0.1": "9 2", "0.2": "4 7"})

    assert (found.overall.model, found.overall.reference) == (300, 800)


def test_a_row_counts_in_each_of_its_categories() -> None:
    rows = [_row(0, category="text, poetry"), _row(1, category="text")]
    replies = {"0.1": "5 9", "0.2": "9 5", "1.1": "5 3", "1.2": "3 5"}

    found = score(rows, replies).categories

    assert {name: (means.model, means.rounds) for name, means in found.items()} == {
        "text": (600, 4),
        "poetry": (900, 2),
    }
    assert set(score(rows, replies, profile="qwen-2023").categories) == {"text", " poetry"}


@pytest.mark.parametrize(("missing", "complete"), [(1, True), (2, False)])
def test_more_than_one_round_in_a_hundred_must_not_be_missing(
    missing: int, *, complete: bool
) -> None:
    rows = [_row(i) for i in range(50)]
    replies: dict[str, str | None] = {f"{i}.{n}": "6 6" for i in range(50) for n in (1, 2)}
    for i in range(missing):
        replies[f"{i}.1"] = None

    found = score(rows, replies)

    assert (found.dropped, found.complete) == (missing, complete)
    assert found.overall.model == 600
    if complete:
        found.require_complete()
    else:
        with pytest.raises(IncompleteEvidenceError, match="2 of 100"):
            found.require_complete()


def test_without_replies_there_is_no_score_and_no_evidence() -> None:
    found = score([_row()], {})

    assert math.isnan(found.overall.model)
    assert [one.state for one in found.rounds] == ["missing", "missing"]
    assert not found.complete
    assert not score([], {}).complete


def test_rows_and_replies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same index"):
        score([_row(), _row()], {})
    with pytest.raises(ValueError, match=r"no round '0\.3'"):
        score([_row()], {"0.3": "8 7"})
    with pytest.raises(ValueError, match="lacks question, human_annotation"):
        score([{"index": 0}], {})
    with pytest.raises(ValueError, match="profile is 'mine'"):
        score([], {}, profile="mine")  # type: ignore[arg-type]  # the point


def test_the_judge_sees_both_answers_in_both_orders() -> None:
    asked = dict(questions([_row(7)], JudgePrompt()))

    assert list(asked) == ["7.1", "7.2"]
    for key, (first, second) in zip(
        asked, [("the reference", "the model"), ("the model", "the reference")], strict=True
    ):
        system, user = asked[key]
        assert (system["role"], user["role"]) == ("system", "user")
        order = ["A red bus.", "What is it?", first, second, "1 (useless) to 10"]
        places = [user["content"].index(part) for part in order]
        assert places == sorted(places)


def test_an_answer_cannot_reach_into_the_template() -> None:
    row = _row(question="$first", response="${second} $$")

    user = dict(questions([row], JudgePrompt()))["0.1"][1]["content"]

    assert "\n$first\n" in user
    assert "\n${second} $$\n" in user


def test_another_template_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("$description|$question|$first|$second", encoding="utf-8")

    mine = read_template(path)

    assert mine.digest != JudgePrompt().digest == JudgePrompt().digest
    filled = mine.messages(description="a", question="b", first="c", second="d")
    assert filled[1]["content"] == "a|b|c|d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$description $question $first", "does not use \\$second"),
        ("$description $question $first $second $image", "uses an unknown \\$image"),
        ("$description $question $first $second for 5 $", "not followed by a name"),
    ],
)
def test_a_template_names_the_four_parts_and_nothing_else(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(JudgePromptError, match=message):
        read_template(path)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe$question")

    with pytest.raises(JudgePromptError, match="cannot be read"):
        read_template(tmp_path / "binary")
    with pytest.raises(JudgePromptError, match="cannot be read"):
        read_template(tmp_path / "absent")

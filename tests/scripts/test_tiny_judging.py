"""Judging the tiny model: what counts as right, and a control that shows other pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.scene_fonts import unseen_faces
from qwen_vl.scenes import PORTABLE, Sample, samples
from scripts.ship_tiny import training_record
from scripts.tiny_card import card_body
from scripts.tiny_curves import curves
from scripts.tiny_judging import Task, _judged, chance, shuffled, summary


def _asked(kind: str, count: int = 6) -> list[Sample]:
    return list(samples(2, count, language="en", split="test", kinds=(kind,), style=PORTABLE))


def test_the_true_answer_is_right_and_any_other_is_wrong() -> None:
    for kind in ("colour", "counting", "reading", "choice", "comparison"):
        for one in _asked(kind):
            assert _judged(one, one.answer).right
            assert not _judged(one, one.answer + ".").right
            assert not _judged(one, "").right


def test_a_box_is_judged_by_its_overlap_with_what_was_drawn() -> None:
    for one in _asked("grounding"):
        assert one.box is not None
        x1, y1, x2, y2 = one.box
        exact = f"<box>({x1},{y1}),({x2},{y2})</box>"
        half = f"<box>({x1},{y1}),({x2},{(y1 + y2) // 2})</box>"
        assert _judged(one, exact).overlap == 1
        assert _judged(one, half).overlap == pytest.approx(0.5, abs=0.01)
        assert _judged(one, one.answer).overlap > 0.85
        for broken in ("", "<box>(1,2),(3)</box>", "<box>(1,2),(3,4)", "the red circle"):
            assert _judged(one, broken).overlap == 0
        backwards = f"<box>({x2},{y2}),({x1},{y1})</box>"
        assert not _judged(one, backwards).right


def test_the_control_asks_the_same_about_another_picture() -> None:
    for kind in ("colour", "comparison", "dialogue"):
        asked = _asked(kind)
        for one, other, wrong in zip(asked, [*asked[1:], asked[0]], shuffled(asked), strict=True):
            assert (wrong.question, wrong.answer) == (one.question, one.answer)
            assert wrong.images == other.images
            assert [answer for _, answer in wrong.history] == [a for _, a in one.history]


def test_shares_come_with_intervals() -> None:
    asked = _asked("grounding")
    judged = [_judged(one, one.answer if n else "") for n, one in enumerate(asked)]
    told = summary(judged, boxes=True, seed=1)

    assert told["right"] == pytest.approx(5 / 6)
    low, high = told["interval"]
    assert low < 5 / 6 < high
    assert told["mean_iou_interval"][0] <= told["mean_iou"] <= told["mean_iou_interval"][1]


def test_the_commonest_answer_is_what_a_blind_model_could_give() -> None:
    asked = _asked("presence", 40)

    yes = sum(one.answer == "yes" for one in asked) / 40
    assert chance(asked) == max(yes, 1 - yes)


def test_a_task_says_what_its_scenes_are() -> None:
    plain, alike = Task("counting", 1, 7), Task("counting", 1, 7, alike=True)
    unseen = Task("reading", 1, 7, unseen=True)

    assert (plain.name, alike.name) == ("counting", "counting, alike")
    assert (plain.style.alike, alike.style.alike) == (0, 100)
    assert unseen.name == "reading, unseen fonts"
    assert unseen.style.faces == (unseen_faces() or plain.style.faces)


def _figures() -> dict[str, Any]:
    facts = {"n": 6, "right": 0.5, "interval": [0.2, 0.8], "commonest_answer": 0.25,
             "shuffled": {"right": 0.125}, "mean_iou": 0.875,
             "mean_iou_interval": [0.75, 0.9]}  # fmt: skip
    blind = {name: fact for name, fact in facts.items() if name != "shuffled"}
    return {
        "command": "python scripts/evaluate_tiny.py CHECKPOINT --dtype bfloat16",
        "bf16_units": False,
        "kinds": {
            "colour": {"en": facts, "zh": facts},
            "grounding": {"en": facts},
            "unknown": {"en": blind},
        },
        "unseen_fonts": {"en": facts, "zh": facts, "fonts": [{"name": "Strange"}]},
    }


def test_the_card_says_what_the_figures_say(tmp_path: Path) -> None:
    stage = {"steps": 3, "minutes": 1.5, "command": "python scripts/train_tiny.py"}
    training = {"machine": "a box", "torch": "2", "seed": 1, "stages": {"vision": stage},
                "fonts": {"faces": [{"name": "Plain"}]}}  # fmt: skip
    about = {"parameters": 5.5, "tokens": 64, "digest": "0" * 64}

    text = card_body(about, training, _figures())

    assert "| colour | zh | 6 | 50.0 % | 20.0 … 80.0 | ≥ 97 % | 12.5 % | 25.0 % |" in text
    assert "| unknown | en | 6 | 50.0 % | 20.0 … 80.0 |  | no picture | 25.0 % |" in text
    assert "en 0.875 (0.750 … 0.900)" in text
    assert "(Strange)" in text
    assert "no units for bf16" in text
    for other in ({"bf16_units": True}, {"command": "--dtype float32"}):
        assert "no units for bf16" not in card_body(about, training, _figures() | other)
    older = {name: told for name, told in _figures().items() if name != "bf16_units"}
    assert "no units for bf16" not in card_body(about, training, older)
    assert "Measured" not in card_body(about, training, None)
    assert json.dumps(training)


def test_a_stage_gone_through_again_does_not_hide_the_first(tmp_path: Path) -> None:
    lines = [{"step": n, "seconds": 6.0 * n, "loss": 1.0} for n in (1, 11)]
    (tmp_path / "vision.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    earlier = {"stages": {"vision": {"steps": 7}, "language": {"steps": 8}}}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    runs = {"seed": 1, "machine": "a box", "runs": [{"stage": "vision", "command": "again"}]}
    (tmp_path / "runs.json").write_text(json.dumps(runs))

    stages = training_record(tmp_path)["stages"]

    assert {name: facts["steps"] for name, facts in stages.items()} == {
        "vision": 7, "language": 8, "vision 2": 11
    }  # fmt: skip
    assert stages["vision 2"]["command"] == "again"


def test_curves_are_drawn_for_every_stage() -> None:
    log = [{"seconds": 60.0 * n, "loss": 5.0 - n, "colour": n / 4} for n in range(4)]

    sheet = curves({"vision": log, "vision 2": log}, {"vision": ["colour"], "language": []})

    assert sheet.size == (1280, 600)
    diagram = sheet.crop((690, 30, 1120, 270))  # without the names of the lines
    colours = [rgb for _, rgb in diagram.getcolors(1 << 20) or [] if isinstance(rgb, tuple)]
    assert any(blue - red > 100 for red, _, blue in colours)

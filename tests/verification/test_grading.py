"""Right and wrong: short answers in sentences, rivals, boxes, and what nobody can grade."""

from __future__ import annotations

import pytest

from verification.grading import grade
from verification.probes import Box, Probe, make_probes


def _probe(kind: str, answer: str | None, truth: Box | None = None) -> Probe:
    return Probe("probe-000", "en", kind, ({"text": "?"},), (), truth=truth, answer=answer)


@pytest.mark.parametrize(
    ("kind", "truth", "said", "right"),
    [
        ("colour", "red", "red", True),
        ("colour", "red", "The circle is Red.", True),
        ("colour", "red", "red and blue", False),
        ("colour", "red", "It is coloured", False),
        ("colour", "红色", "圆形是红色的。", True),
        ("colour", "红色", "红色和蓝色", False),
        ("counting", "3", "There are three circles", True),
        ("counting", "3", "3 or 4", False),
        ("presence", "没有", "没有。", True),
        ("presence", "有", "没有", False),
        ("presence", "yes", "Yes, there is.", True),
        ("relation", "left", "to the left", True),
        ("choice", "B", "B", True),
        ("choice", "B", "B. a circle", True),
        ("choice", "B", "a", False),
        ("comparison", "the first", "The first.", True),
        ("comparison", "the first", "the second", False),
        ("reading", "EXIT", '"Exit"', True),
        ("reading", "K7P", "K7R", False),
    ],
)
def test_an_answer_is_right_when_it_says_the_truth_and_no_rival(
    kind: str, truth: str, said: str, right: bool
) -> None:
    assert grade(_probe(kind, truth), said) is right


def test_a_box_is_right_where_it_overlaps_the_truth_by_half() -> None:
    probe = _probe("grounding", "<box>…</box>", truth=(100, 100, 300, 300))

    assert grade(probe, "<ref>the red circle</ref><box>(100,100),(300,260)</box>") is True
    assert grade(probe, "<box>(100,100),(300,190)</box>") is False
    assert grade(probe, "there") is False


def test_open_questions_are_not_graded() -> None:
    assert grade(_probe("caption", "A red circle."), "A red circle.") is None
    assert grade(_probe("text", None), "Snow is frozen rain.") is None


def test_the_true_answer_of_every_drawn_probe_is_right() -> None:
    probes = [probe for probe in make_probes(5, 200) if probe.answer is not None]

    graded = [(probe.kind, grade(probe, probe.answer or "")) for probe in probes]

    assert {kind for kind, right in graded if right is None} <= {"text", "caption"}
    # boxes are told in multiples of ten, the truth is exact: they overlap, but are not equal
    assert [kind for kind, right in graded if right is False] == []
    assert len([right for _, right in graded if right]) > 120

"""Boxes and probes: the grammar, the overlap, and questions that follow from the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verification.boxes import allowed_box_text, grammar_tokens, is_whole_box, overlap, read_boxes
from verification.probes import make_probes

_NUMBERS = st.integers(0, 999)
_BOXES = st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)


@given(_BOXES)
def test_every_prefix_of_a_box_is_allowed_and_only_the_end_is_whole(
    box: tuple[int, int, int, int],
) -> None:
    text = "({},{}),({},{})".format(*box)

    assert all(allowed_box_text(text[:end]) for end in range(len(text) + 1))
    assert is_whole_box(text)
    assert not any(is_whole_box(text[:end]) for end in range(len(text)))
    assert len(read_boxes(text)) == 1


@pytest.mark.parametrize("text", ["1", "()", "(,", "(1234", "(1,2)(", "(1,2),(3,4),", "(-1", "(１"])
def test_what_cannot_become_a_box_is_not_allowed(text: str) -> None:
    assert not allowed_box_text(text)


@given(_BOXES, _BOXES)
def test_overlap_is_symmetric_and_between_none_and_all(
    a: tuple[int, int, int, int], b: tuple[int, int, int, int]
) -> None:
    (first,) = read_boxes("({},{}),({},{})".format(*a))
    (second,) = read_boxes("({},{}),({},{})".format(*b))

    assert overlap(first, second) == overlap(second, first)
    assert 0 <= overlap(first, second) <= 1
    assert overlap(first, first) == 1


def test_only_tokens_of_the_grammar_are_offered() -> None:
    assert grammar_tokens(
        [b"a", b"1", b"),(", b"", b"\xe5", b"12", b"(1,2),(3,4),(5,6),(7,8)"]
    ) == {
        1: "1",
        2: "),(",
        5: "12",
    }


def test_probes_follow_from_the_seed_and_mix_sorts_and_languages() -> None:
    probes = make_probes(3, 24)

    again = make_probes(3, 24)
    assert [p.question for p in probes] == [p.question for p in again]
    assert [p.question for p in probes[:8]] == [p.question for p in make_probes(3, 8)]
    assert [p.question for p in probes] != [p.question for p in make_probes(4, 24)]
    assert sum(not p.images for p in probes) == 6
    assert sum(p.target is not None and p.truth is not None for p in probes) == 6
    assert {p.language for p in probes if p.images} == {"en", "zh"}
    assert {p.language for p in probes if not p.images} == {"en", "zh"}


def test_the_default_number_of_probes_can_be_made() -> None:
    assert len({p.key for p in make_probes(0, 300)}) == 300

"""Drawn scenes: what a sample says is true of its pixels, and the seed decides everything."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from qwen_vl.scene_dice import SPLITS, Dice, split_dice
from qwen_vl.scene_drawing import GRID, Bar, Box, Scene, SceneKind, Style, draw
from qwen_vl.scene_fonts import chinese_faces, trained_faces, unseen_faces
from qwen_vl.scene_small_talk import _WORDS_EN, ANSWER, TALK, _without_picture, unknown
from qwen_vl.scene_tasks import count_things
from qwen_vl.scene_words import COLOURS, LANGUAGES, SHAPES, Language
from qwen_vl.scenes import KINDS, MIXED, TEXT_ONLY, Sample, digest, draw_scene, samples

_BOX = re.compile(r"<ref>(.+)</ref><box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")


def _bounds(image: Image.Image, rgb: tuple[int, int, int], *, other: bool = False) -> Box:
    """Where a colour is; or, with `other`, where anything else is."""
    match = (np.asarray(image) == rgb).all(-1) != other
    rows, columns = np.flatnonzero(match.any(1)), np.flatnonzero(match.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _pixels(box: Box, size: int) -> tuple[int, ...]:
    return tuple(round(edge * size / GRID) for edge in box)


@pytest.mark.parametrize("size", [224, 448, 97])
@pytest.mark.parametrize("seed", range(12))
def test_a_box_encloses_its_shape_and_nothing_else(seed: int, size: int) -> None:
    scene = draw_scene(seed, size=size)

    colours = [thing.colour for thing in scene.objects]
    for thing in scene.objects:
        if colours.count(thing.colour) == 1:
            actual = _bounds(scene.image, thing.colour.rgb)
            told = _pixels(thing.box, size)
            assert max(abs(a - b) for a, b in zip(told, actual, strict=True)) <= 1


@pytest.mark.parametrize("seed", range(12))
def test_objects_differ_and_do_not_touch(seed: int) -> None:
    objects = draw_scene(seed).objects

    assert len({(thing.colour, thing.shape) for thing in objects}) == len(objects)
    for one, two in itertools.combinations(objects, 2):
        apart = (
            one.box[2] < two.box[0]
            or two.box[2] < one.box[0]
            or one.box[3] < two.box[1]
            or two.box[3] < one.box[1]
        )
        assert apart


def test_where_things_are_alike_there_are_several_of_a_kind() -> None:
    alike = Style(alike=100)
    scenes = [draw("shapes", Dice(5, n), alike) for n in range(60)]
    by_chance = [draw("shapes", Dice(5, n), Style()) for n in range(60)]

    for scene in scenes:
        looks = {(thing.colour, thing.shape) for thing in scene.objects}
        assert len(looks) == len(scene.objects)
        assert min(len({c for c, _ in looks}), len({s for _, s in looks})) <= 3
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4, 5}
    assert _most_of_a_kind(scenes) > 1.5 * _most_of_a_kind(by_chance)


def _most_of_a_kind(scenes: list[Scene]) -> int:
    return sum(
        len(kind) > 2
        for scene in scenes
        for kind in ([t for t in scene.objects if t.colour is c] for c in COLOURS)
    )


def test_a_count_knows_the_words_for_what_is_counted() -> None:
    for n, language in itertools.product(range(40), LANGUAGES):
        dice = Dice(6, n)
        scene = draw("shapes", dice, Style(alike=60))
        question = count_things(dice, scene, language)
        assert question is not None
        told = [
            thing
            for thing in scene.objects
            if question.sought in ("shapes", "图形", thing.shape.plural, thing.shape.zh)
            or question.sought == thing.colour.word(language)
        ]
        assert question.sought in question.text
        assert int(question.answer) == len(told) == len(question.about)
        assert set(question.about) == {thing.box for thing in told}


def _ink(scene: Scene) -> Box:
    """Where a scene without objects differs from its background."""
    assert not scene.objects
    return _bounds(scene.image, scene.background.rgb, other=True)


@pytest.mark.parametrize("seed", range(8))
def test_the_boxes_of_characters_enclose_the_printed_ink(seed: int) -> None:
    scene = draw_scene(seed, kind="text")

    assert scene.printed is not None
    told = _pixels(scene.printed.box, 224)
    assert max(abs(a - b) for a, b in zip(told, _ink(scene), strict=True)) <= 1
    assert len(scene.printed.boxes) == len(scene.printed.text)
    lefts = [box[0] for box in scene.printed.boxes]
    assert lefts == sorted(lefts)


def test_every_installed_font_prints_every_character_inside_the_picture() -> None:
    for face in (*trained_faces(), *unseen_faces()):
        style = Style(faces=(face,))
        for seed in range(3):
            scene = draw("text", split_dice("test", seed), style)
            assert scene.printed is not None
            told = _pixels(scene.printed.box, 224)
            actual = _ink(scene)
            assert max(abs(a - b) for a, b in zip(told, actual, strict=True)) <= 2, face.name


def test_fonts_to_be_judged_on_are_never_trained_on() -> None:
    assert not set(trained_faces()) & set(unseen_faces())


def test_a_chinese_glyph_is_drawn_where_a_font_is_installed() -> None:
    if not chinese_faces():
        pytest.skip("no font with Chinese glyphs is installed")
    scene = draw("glyphs", split_dice("test", 1), Style(glyph_faces=chinese_faces()))

    assert scene.printed is not None
    told = _pixels(scene.printed.box, 224)
    assert max(abs(a - b) for a, b in zip(told, _ink(scene), strict=True)) <= 2


def test_printed_text_leaves_the_objects_alone() -> None:
    scene = next(s for s in map(draw_scene, range(60)) if s.printed and len(s.objects) > 3)

    assert scene.printed is not None
    assert max(thing.box[3] for thing in scene.objects) <= scene.printed.box[1]


def _height(scene: Scene, bar: Bar) -> int:
    left, top, right, bottom = _bounds(scene.image, bar.colour.rgb)
    assert right > left
    return bottom - top


@pytest.mark.parametrize("seed", range(8))
def test_a_bar_is_as_high_as_its_value(seed: int) -> None:
    scene = draw_scene(seed, kind="chart")

    units = {_height(scene, bar) / bar.value for bar in scene.bars}
    assert len(units) == 1
    assert len({bar.colour for bar in scene.bars}) == len(scene.bars)


@pytest.mark.parametrize("kind", ["shapes", "text", "chart"])
def test_no_two_splits_draw_the_same_scene(kind: SceneKind) -> None:
    drawn = {
        (split, seed): draw_scene(seed, split=split, kind=kind).image.tobytes()
        for split in SPLITS
        for seed in range(6)
    }

    # a text of two characters at the same place in the same shade would be a rare accident
    assert len(set(drawn.values())) == len(drawn)


def test_every_kind_comes_in_both_languages() -> None:
    found = {(sample.kind, sample.language) for sample in samples(0, 2 * len(MIXED))}

    assert found == set(itertools.product(MIXED, ("en", "zh")))


def test_one_language_can_be_asked_for() -> None:
    assert {sample.language for sample in samples(0, 8, language="zh")} == {"zh"}


def _of_kind(kind: str, count: int = 24) -> list[Sample]:
    return list(samples(5, count, language="en", split="test", kinds=(kind,)))


def test_a_caption_names_every_object_in_both_languages() -> None:
    for language in ("en", "zh"):
        for one in samples(1, 6, language=language, kinds=("caption",)):
            seen = {rgb for _, rgb in one.images[0].getcolors(1 << 16) or []}
            for colour in COLOURS:
                assert (colour.word(language) in one.answer) == (colour.rgb in seen)


def test_a_grounding_answer_is_the_true_box_in_multiples_of_ten() -> None:
    for sample in _of_kind("grounding"):
        match = _BOX.fullmatch(sample.answer)
        assert match is not None
        assert sample.box is not None
        told = [int(edge) for edge in match.groups()[1:]]
        assert all(edge % 10 == 0 for edge in told)
        assert max(abs(a - b) for a, b in zip(told, sample.box, strict=True)) <= 10
        rgb = next(c.rgb for c in COLOURS if f" {c.en} " in f" {match[1]} ")
        x1, y1, x2, y2 = sample.box
        centre = ((x1 + x2) * 224 // (2 * GRID), (y1 + y2) * 224 // (2 * GRID))
        assert sample.images[0].getpixel(centre) == rgb


def test_a_multiple_choice_offers_the_right_answer_once() -> None:
    for sample in _of_kind("choice"):
        assert len(set(sample.choices)) == 4
        lines = sample.question.splitlines()
        assert lines[1:5] == [f"{a}. {c}" for a, c in zip("ABCD", sample.choices, strict=True)]
        chosen = sample.choices["ABCD".index(sample.answer)]
        colours = {rgb for _, rgb in sample.images[0].getcolors(1 << 16) or []}
        named = next((colour for colour in COLOURS if colour.en == chosen), None)
        assert named is None or named.rgb in colours


def test_answers_are_balanced_enough_to_mean_something() -> None:
    for kind in ("relation", "presence", "comparison"):
        answers = [sample.answer for sample in _of_kind(kind, 120)]
        assert max(answers.count(answer) for answer in set(answers)) < 80, kind


def test_a_comparison_shows_two_images_and_a_dialogue_shows_one_in_its_past() -> None:
    by_kind = {sample.kind: sample for sample in samples(0, 2 * len(MIXED))}

    assert len(by_kind["comparison"].images) == 2
    assert len(by_kind["dialogue"].images) == 1
    assert all("image" not in element for element in by_kind["dialogue"].elements)
    assert by_kind["small talk"].images == ()
    assert len(by_kind["small talk"].history) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_that_is_not_known_is_never_what_is_known_and_has_one_answer(
    language: Language,
) -> None:
    asked = list(samples(4, 400, language=language, split="train", kinds=("unknown",)))
    pictured = ("colour", "grounding", "counting", "caption")
    seen = {one.question for one in samples(4, 4000, language=language, kinds=pictured)}
    taught = {question for question, _ in TALK[language]}

    assert {one.answer for one in asked} == {ANSWER[language]}
    assert all(one.images == () and one.question not in taught for one in asked)
    made_up = {one.question for one in asked}
    assert len(made_up) > 350
    missing = [one for one in asked if one.question in seen]  # they ask about no picture
    assert 0.05 * len(asked) < len(missing) < 0.15 * len(asked)
    assert {_without_picture(split_dice("train", 9, n), language) for n in range(400)} <= seen
    before = [one.history[0] for one in asked if one.history]
    assert 0.2 * len(asked) < len(before) < 0.5 * len(asked)
    assert {answer for question, answer in before if question not in taught} == {ANSWER[language]}
    assert set(before) >= set(TALK[language])
    assert all(question.isascii() == (language == "en") for question in made_up)


class _Fixed(Dice):
    """Dice that fall as told, then as ever."""

    def __init__(self, *rolls: int) -> None:
        super().__init__(0)
        self.rolls = list(rolls)

    def below(self, limit: int) -> int:
        return self.rolls.pop(0) if self.rolls else super().below(limit)


def test_what_is_taught_is_drawn_again() -> None:
    # nothing before it, made up, 60 % known, one word, a known one, "Hello", "!", with a capital
    dice = _Fixed(99, 99, 2, 0, 0, _WORDS_EN.index("Hello"), 5, 0)

    question = unknown(dice, "en")

    assert not dice.rolls
    assert question.text != "Hello!"
    assert question.answer == ANSWER["en"]


def test_every_word_of_a_thing_has_a_task_to_ask_about_it() -> None:
    asked = " ".join(sample.question + sample.answer for sample in samples(3, 400, language="en"))

    assert all(named.en in asked for named in (*COLOURS, *SHAPES))
    assert set(MIXED) <= {*KINDS, "comparison", *TEXT_ONLY}


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    assert digest(samples(7, 10)) == digest(itertools.islice(samples(7, 20), 10))


def test_the_digest_is_the_one_of_every_machine() -> None:
    expected = "f592a5f4fa563a8a7684f9d3dd18cb02d3846136d26714a89dd978a2059b6f61"

    assert digest(samples(0, 24)) == expected


def test_the_digest_sees_one_pixel_and_the_seed() -> None:
    before = list(samples(0, 2))
    expected = digest(before)
    before[1].images[0].putpixel((0, 0), (1, 2, 3))

    assert digest(before) != expected
    assert digest(samples(1, 2)) != expected

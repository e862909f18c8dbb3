"""Drawn scenes: what a sample says is true of its pixels, and the seed decides everything."""

from __future__ import annotations

import itertools
import re

import pytest
from PIL import Image

from qwen_vl.scenes import COLOURS, GRID, Sample, Thing, digest, draw_scene, samples

_BOX = re.compile(r"<ref>(.+)</ref><box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")


def _bounds(image: Image.Image, rgb: tuple[int, int, int]) -> tuple[int, int, int, int]:
    match = Image.new("1", image.size)
    match.putdata([pixel == rgb for pixel in image.get_flattened_data()])
    found = match.getbbox()
    assert found is not None
    return found


def _pixels(thing: Thing, size: int) -> tuple[int, ...]:
    return tuple(round(edge * size / GRID) for edge in thing.box)


@pytest.mark.parametrize("size", [224, 448, 97])
@pytest.mark.parametrize("seed", range(12))
def test_a_box_encloses_its_shape_and_nothing_else(seed: int, size: int) -> None:
    scene = draw_scene(seed, size=size)

    colours = [thing.colour for thing in scene.objects]
    for thing in scene.objects:
        if colours.count(thing.colour) == 1:
            actual = _bounds(scene.image, thing.colour.rgb)
            assert max(abs(a - b) for a, b in zip(_pixels(thing, size), actual, strict=True)) <= 1


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


def test_printed_text_leaves_the_objects_alone() -> None:
    scene = next(s for s in map(draw_scene, range(40)) if s.text and s.background.en == "white")

    ink = _bounds(scene.image, (20, 20, 20))

    assert all(_pixels(thing, 224)[3] <= ink[1] for thing in scene.objects)
    assert ink[3] <= 224
    assert f'"{scene.text}"' in scene.caption_en
    assert f"“{scene.text}”" in scene.caption_zh


def test_a_caption_names_every_object_in_both_languages() -> None:
    scene = draw_scene(3)

    assert all(thing.name("en") in scene.caption_en for thing in scene.objects)
    assert all(thing.name("zh") in scene.caption_zh for thing in scene.objects)


def test_every_kind_comes_in_both_languages() -> None:
    found = {(sample.kind, sample.language) for sample in samples(0, 16)}

    kinds = {kind for kind, _ in found}
    assert len(kinds) == 8
    assert found == set(itertools.product(kinds, ("en", "zh")))


def test_one_language_can_be_asked_for() -> None:
    assert {sample.language for sample in samples(0, 8, language="zh")} == {"zh"}


def test_a_grounding_answer_is_a_box_around_that_colour() -> None:
    grounding = [s for s in samples(5, 64, language="en") if s.kind == "grounding"]

    for sample in grounding:
        match = _BOX.fullmatch(sample.answer)
        assert match is not None
        x1, y1, x2, y2 = (int(edge) for edge in match.groups()[1:])
        assert 0 <= x1 < x2 < GRID
        assert 0 <= y1 < y2 < GRID
        rgb = next(c.rgb for c in COLOURS if f" {c.en} " in f" {match[1]} ")
        centre = ((x1 + x2) * 224 // (2 * GRID), (y1 + y2) * 224 // (2 * GRID))
        assert sample.images[0].getpixel(centre) == rgb


def test_a_comparison_shows_two_images_and_a_dialogue_has_a_past() -> None:
    by_kind: dict[str, Sample] = {sample.kind: sample for sample in samples(0, 16)}

    assert len(by_kind["comparison"].images) == 2
    assert by_kind["dialogue"].images == ()
    assert len(by_kind["dialogue"].history) == 1


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    assert digest(samples(7, 10)) == digest(itertools.islice(samples(7, 20), 10))


def test_the_digest_is_the_one_of_every_machine() -> None:
    expected = "31b75bba54f44fc30a2c2e3ecd7cd77c991a8da43c29328ee8a76349d95fba56"

    assert digest(samples(0, 16)) == expected


def test_the_digest_sees_one_pixel_and_the_seed() -> None:
    before = list(samples(0, 2))
    expected = digest(before)
    before[1].images[0].putpixel((0, 0), (1, 2, 3))

    assert digest(before) != expected
    assert digest(samples(1, 2)) != expected

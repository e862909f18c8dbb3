import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.boxes import (
    Box,
    draw_boxes,
    draw_on_latest_picture,
    latest_picture,
    parse_boxes,
    pixel_box,
)
from qwen_vl.errors import ImageNotAllowedError, MalformedBoxError
from qwen_vl.list_format import from_list_format, to_list_format
from tests.qwen_vl.text_goldens import agrees, golden

RECORDED = golden("boxes")
SIZES = {"images/synth_rgb.png": (320, 200), "images/synth_tall.png": (60, 500)}


@pytest.mark.parametrize("case", RECORDED["fetch_all_box_with_ref"], ids=lambda c: c["text"][:30])
def test_boxes_are_parsed_as_recorded(case: dict[str, Any]) -> None:
    assert agrees(lambda: to_list_format(case["text"]), case["to_list_format"])
    assert agrees(lambda: parse_boxes(case["text"]), case["boxes"])


@pytest.mark.parametrize("case", RECORDED["latest_picture"])
def test_the_latest_picture_is_found_as_recorded(case: dict[str, Any]) -> None:
    assert agrees(lambda: latest_picture(case["response"], case["history"]), case["image"])


@pytest.mark.parametrize("case", RECORDED["draw"], ids=lambda c: c["response"][:30])
def test_boxes_become_the_recorded_pixels(case: dict[str, Any]) -> None:
    want = case
    if "error_type" not in case:
        calls = case["draw_calls"]
        pixels = [call["box_px"] for call in calls if "box_px" in call]
        want = {"ok": [pixels, [call["text"] for call in calls if "text" in call]]}

    def drawn() -> list[Any]:
        boxes = parse_boxes(case["response"])
        size = SIZES[str(latest_picture(case["response"], None) or case["image"])]
        corners = [dataclasses.astuple(pixel_box(box["box"], size)) for box in boxes]
        return [corners, [box["ref"] for box in boxes if "ref" in box]]

    assert agrees(drawn, want)


@pytest.mark.parametrize("case", RECORDED["draw"], ids=lambda c: c["response"][:30])
def test_a_drawing_exists_when_one_was_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (320, 200)).save(path)
    response = case["response"].replace("images/synth_rgb.png", str(path))
    want = case
    if "error_type" not in case:
        want = {"ok": case["result"] is not None}
    history = [(f"<img>{path}</img>", "r")]

    assert agrees(
        lambda: draw_on_latest_picture(response, history, allow_paths=True) is not None, want
    )


def test_drawing_leaves_the_picture_alone_and_is_the_same_every_time() -> None:
    picture = Image.new("RGB", (200, 100))
    boxes = parse_boxes("<ref>dog</ref><box>(100,200),(900,800)</box><box>(0,0),(50,50)</box>")

    first, second = draw_boxes(picture, boxes), draw_boxes(picture, boxes)

    assert first.tobytes() == second.tobytes() != picture.tobytes()
    assert first.getpixel((179, 60)) == (0xE6, 0x9F, 0x00)  # the right edge, inside the line
    assert first.getpixel((9, 3)) == (0xE6, 0x9F, 0x00)  # a box without ref shares the colour
    assert first.getpixel((100, 50)) == (0, 0, 0)
    assert picture.tobytes() == bytes(3 * 200 * 100)


def test_boxes_outside_and_reversed_corners_are_drawn() -> None:
    boxes = parse_boxes("<box>(900,800),(100,50)</box><box>(-10,5),(1200,999)</box>")

    drawn = draw_boxes(Image.new("L", (100, 100)), boxes)

    assert drawn.size == (100, 100)
    assert drawn.getpixel((10, 40)) == (0xE6, 0x9F, 0x00)


@pytest.mark.parametrize("ref", ["击掌", "dog", "", "🐶"])
def test_any_ref_can_be_labelled(ref: str) -> None:
    box = Box(box=[100, 100, 900, 900], ref=ref)

    assert draw_boxes(Image.new("RGB", (100, 100)), [box]).size == (100, 100)


def test_a_picture_that_was_handed_over_is_returned_itself() -> None:
    picture = Image.new("RGB", (30, 20))
    query = from_list_format([{"image": picture}, {"text": "<ref>it</ref>?"}])
    history = [(query, "<box>(0,0),(9,9)</box>")]

    assert latest_picture("r", history) is picture
    drawn = draw_on_latest_picture("<box>(0,0),(500,500)</box>", history)
    assert drawn is not None
    assert drawn.size == (30, 20)


def test_a_picture_only_named_in_text_is_not_opened() -> None:
    with pytest.raises(ImageNotAllowedError, match="only named"):
        draw_on_latest_picture("<box>(0,0),(9,9)</box>", [("<img>/etc/passwd</img>", "r")])


@pytest.mark.parametrize("content", ["(1,2)", "(a,b),(c,d)", "", "(1.5,2),(3,4)", "1,2,3,4,5"])
def test_a_malformed_box_is_quoted(content: str) -> None:
    with pytest.raises(MalformedBoxError) as caught:
        parse_boxes(f"<box>{content}</box>")

    assert repr(content) in str(caught.value)

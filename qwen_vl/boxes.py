"""Boxes in an answer: read them, find the picture they speak of, draw them.

Coordinates are thousandths of the picture's width and height.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NotRequired, TypedDict

from PIL import Image, ImageDraw, ImageFont

from qwen_vl.errors import ImageNotAllowedError, MalformedBoxError
from qwen_vl.image_sources import ImageInput, ImageSource, ImageText, open_image
from qwen_vl.list_format import split_tags
from qwen_vl.ranks import IMG_START

# told apart by people who see colours differently, on dark and on light
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
_CJK_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf",
    "SourceHanSansCN-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallback.ttf",
    "simsun.ttc", "SimSun.ttf", "msyh.ttc", "PingFang.ttc",
)  # fmt: skip


Turn = tuple[str, str | None]


class Box(TypedDict):
    """One box as the code of 2023 gives it: [x1, y1, x2, y2], and its ref if one came just before.

    A dict, because callers index it and print it as JSON.
    """

    box: list[int]
    ref: NotRequired[str]


def parse_boxes(text: str) -> list[Box]:
    """Every `<box>` of a text, in order; quads are left out.

    A ref belongs to a box only if nothing at all stands between them. Neither range nor order of
    the corners is checked.

    Raises:
        MalformedBoxError: a box is not four integers.
        MalformedTextError: a tag is never closed, or a control token stands in the text.
    """
    boxes: list[Box] = []
    ref: str | None = None
    for piece in split_tags(text):
        if piece.kind == "box":
            box = Box(box=_corners(piece.content))
            if ref is not None:
                box["ref"] = ref
            boxes.append(box)
        ref = piece.content.strip() if piece.kind == "ref" else None
    return boxes


def _corners(content: str) -> list[int]:
    numbers = content.replace("(", "").replace(")", "").split(",")
    try:
        corners = [int(number) for number in numbers]
    except ValueError as error:
        raise MalformedBoxError(f"not four integers: {content!r}") from error
    if len(corners) != 4:
        raise MalformedBoxError(f"not four integers: {content!r}")
    return corners


def latest_picture(response: str, history: Sequence[Turn] | None) -> ImageInput | None:
    """The last image of the response, else of the newest query that has one, else None.

    A path for what stands in plain text; for a text made by `from_list_format`, what was handed
    over. Images in earlier responses do not count.

    Raises:
        MalformedTextError: a text that was looked at has broken tags.
    """
    found = latest_source(response, history)
    return found.image if isinstance(found, ImageSource) else found


def latest_source(response: str, history: Sequence[Turn] | None) -> ImageSource | str | None:
    """The same, as what was handed over, or as the name that plain text gives."""
    for text in (response, *(query for query, _ in reversed(history or []))):
        paths = [piece.content for piece in split_tags(text) if piece.kind == "image"]
        if paths:
            given = text.images[-1:] if isinstance(text, ImageText) else ()
            last = next((i for i in given if i.start == text.rfind(IMG_START)), None)
            return last or paths[-1]
    return None


@dataclass(frozen=True, slots=True)
class PixelBox:
    """Corners in pixels, not clamped and not ordered."""

    x1: int
    y1: int
    x2: int
    y2: int


def pixel_box(box: Sequence[int], size: tuple[int, int]) -> PixelBox:
    """Thousandths to pixels, cut off toward zero."""
    width, height = size
    x1, y1, x2, y2 = box
    return PixelBox(
        int(x1 / 1000 * width),
        int(y1 / 1000 * height),
        int(x2 / 1000 * width),
        int(y2 / 1000 * height),
    )


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy (RGB) of the image with the boxes and their refs drawn.

    A box with a ref starts a new colour, which the boxes after it share. A ref that no installed
    font can show is replaced by the box's number, counted from 1.
    """
    canvas = image.convert("RGB")
    canvas = canvas.copy() if canvas is image else canvas
    pen = ImageDraw.Draw(canvas)
    font_size = max(int(math.sqrt(canvas.width * canvas.height)) // 30, 15)
    colour = -1
    for number, box in enumerate(boxes, start=1):
        colour += "ref" in box or colour < 0
        paint = PALETTE[colour % len(PALETTE)]
        at = pixel_box(box["box"], canvas.size)
        # Pillow insists on ordered corners
        x, y = sorted((at.x1, at.x2)), sorted((at.y1, at.y2))
        pen.rectangle((x[0], y[0], x[1], y[1]), outline=paint, width=max(font_size // 4, 1))
        if "ref" in box:
            _label(pen, Label(box["ref"], number, (at.x1, at.y1), paint, font_size))
    return canvas


@dataclass(frozen=True, slots=True)
class Label:
    """A ref to write, the number that stands in for it, and how."""

    text: str
    number: int
    corner: tuple[int, int]
    colour: str
    font_size: int


def _label(pen: ImageDraw.ImageDraw, mark: Label) -> None:
    cjk = _cjk_font(mark.font_size)
    # Pillow's own font shows Latin letters only
    font = cjk or ImageFont.load_default(mark.font_size)
    text = mark.text if cjk or mark.text.isascii() else str(mark.number)
    left, top, right, bottom = pen.textbbox(mark.corner, text, font=font)
    pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill="#000000")
    pen.text(mark.corner, text, fill=mark.colour, font=font)


@cache
def _cjk_font(size: int) -> ImageFont.FreeTypeFont | None:
    for name in _CJK_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def draw_on_latest_picture(
    response: str, history: Sequence[Turn] | None, *, allow_paths: bool = False
) -> Image.Image | None:
    """Draw the response's boxes on `latest_picture`; None without boxes or without a picture.

    Raises:
        ImageNotAllowedError: the picture is only a path in plain text, and `allow_paths` is off.
    """
    picture = latest_source(response, history)
    boxes = parse_boxes(response)
    if picture is None or not boxes:
        return None
    if isinstance(picture, str) and not allow_paths:
        raise ImageNotAllowedError(f"the picture is only named in the text: {picture!r}")
    return draw_boxes(open_image(picture if isinstance(picture, str) else picture.image), boxes)

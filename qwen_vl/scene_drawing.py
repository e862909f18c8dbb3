"""Draw scenes whose every object, character and bar is known to the pixel.

Shapes are drawn without antialiasing. Boxes are in Qwen-VL's coordinates, [0, 1000) on both axes;
nothing covers anything, and no two objects of a scene share colour and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from qwen_vl.scene_dice import Dice
from qwen_vl.scene_fonts import BITMAP, Face, set_line
from qwen_vl.scene_words import (
    BACKGROUNDS,
    CHARACTERS,
    COLOURS,
    GLYPHS,
    SHAPES,
    WORDS,
    Colour,
    Language,
    Point,
    Shape,
)

Box = tuple[int, int, int, int]
SceneKind = Literal["shapes", "text", "chart", "glyphs"]

DEFAULT_SIZE = 224
GRID = 1000  # the model counts both axes in thousandths
MOST_OBJECTS = 5
_FEW = 3  # colours or shapes of a scene in which things are alike
TOP_VALUE = 9  # of a bar
_ROUND = 10  # boxes are told in multiples of ten: a pixel of 112 is nine thousandths


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn shape; `box` is (x1, y1, x2, y2) in [0, 1000)."""

    colour: Colour
    shape: Shape
    box: Box

    def name(self, language: Language) -> str:
        if language == "en":
            return f"{self.colour.en} {self.shape.en}"
        return f"{self.colour.zh}的{self.shape.zh}"

    def tagged(self, language: Language) -> str:
        """The answer to a grounding question, in the model's own notation."""
        ref = ("the " if language == "en" else "") + self.name(language)
        return f"<ref>{ref}</ref>{tagged_box(self.box)}"

    @property
    def centre(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) // 2, (y1 + y2) // 2


@dataclass(frozen=True, slots=True)
class Printed:
    """A printed string; one box for each character."""

    text: str
    boxes: tuple[Box, ...]
    face: Face

    @property
    def box(self) -> Box:
        lefts, tops, rights, bottoms = zip(*self.boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart; `value` is 1 … 9."""

    colour: Colour
    value: int
    box: Box


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn image and all that is true of it."""

    kind: SceneKind
    image: Image.Image
    background: Colour
    objects: tuple[Thing, ...] = ()
    printed: Printed | None = None
    bars: tuple[Bar, ...] = ()

    @property
    def text(self) -> str | None:
        return self.printed.text if self.printed else None


@dataclass(frozen=True, slots=True)
class Style:
    """What a drawer may use.

    `faces` and `glyph_faces` are the fonts to print in; without the latter there are no glyphs.
    `alike` percent of the scenes of shapes have few colours or few shapes, so that there are more
    of one kind than chance would bring.
    """

    size: int = DEFAULT_SIZE
    faces: tuple[Face, ...] = (BITMAP,)
    glyph_faces: tuple[Face, ...] = ()
    most: int = MOST_OBJECTS  # objects, for a curriculum
    alike: int = 0


def tagged_box(box: Box) -> str:
    """`<box>(x1,y1),(x2,y2)</box>` in multiples of ten, as the model is taught."""
    x1, y1, x2, y2 = (min((edge + _ROUND // 2) // _ROUND * _ROUND, GRID - _ROUND) for edge in box)
    return f"<box>({x1},{y1}),({x2},{y2})</box>"


def draw(kind: SceneKind, dice: Dice, style: Style) -> Scene:
    """Draw a scene of a kind."""
    if kind == "shapes":
        return draw_shapes(dice, style)
    if kind == "chart":
        return _draw_chart(dice, style)
    return _draw_text(dice, style, glyphs=kind == "glyphs")


def draw_shapes(dice: Dice, style: Style, *, text: bool | None = None) -> Scene:
    """Draw one to five shapes; sometimes, or as `text` says, with a string along the lower edge."""
    background, size = dice.pick(BACKGROUNDS), style.size
    image = Image.new("RGB", (size, size), background.rgb)
    text = dice.chance(30) if text is None else text
    # the lower quarter is kept for the text, so that nothing covers anything
    height = size * 3 // 4 if text else size
    cells = [(column, row) for row in range(3) for column in range(3)]
    places = sorted(dice.take(cells, dice.between(1, style.most)), key=lambda cell: cell[::-1])
    looks = dice.take(_looks(dice, style), len(places))
    pen = ImageDraw.Draw(image)
    objects = tuple(
        _draw_thing(pen, dice, place, look, (size, height))
        for place, look in zip(places, looks, strict=True)
    )
    printed = _print(image, dice, style, low=True) if text else None
    return Scene("shapes", image, background, objects, printed)


def _looks(dice: Dice, style: Style) -> list[tuple[Colour, Shape]]:
    """What can be drawn: never fewer looks than there can be things."""
    colours: Sequence[Colour] = COLOURS
    shapes: Sequence[Shape] = SHAPES
    if style.alike and dice.chance(style.alike):
        few = dice.between(1, _FEW)
        if dice.chance(50):
            colours = dice.take(COLOURS, few)
        else:
            shapes = dice.take(SHAPES, few)
    return [(colour, shape) for colour in colours for shape in shapes]


def _draw_thing(
    pen: ImageDraw.ImageDraw,
    dice: Dice,
    place: Point,
    look: tuple[Colour, Shape],
    extent: tuple[int, int],
) -> Thing:
    size, height = extent
    width, tall = size // 3, height // 3
    side = dice.between(size * 3 // 20, min(size * 3 // 10, tall - size // 32))
    left = place[0] * width + dice.between(size // 80, width - side - size // 80)
    top = place[1] * tall + dice.between(size // 80, tall - side - size // 80)
    colour, shape = look
    if shape.corners:
        points = [(left + x * side // 24, top + y * side // 24) for x, y in shape.corners]
        pen.polygon(points, fill=colour.rgb)
    else:
        pen.ellipse((left, top, left + side, top + side), fill=colour.rgb)
    # Pillow's last pixel is inside
    return Thing(colour, shape, _box((left, top, left + side + 1, top + side + 1), size))


def _draw_text(dice: Dice, style: Style, *, glyphs: bool) -> Scene:
    background = dice.pick(BACKGROUNDS)
    image = Image.new("RGB", (style.size, style.size), background.rgb)
    printed = _print(image, dice, style, low=False, glyphs=glyphs)
    return Scene("glyphs" if glyphs else "text", image, background, printed=printed)


def _print(
    image: Image.Image, dice: Dice, style: Style, *, low: bool, glyphs: bool = False
) -> Printed:
    size = style.size
    if glyphs:
        text, face = dice.pick(GLYPHS), dice.pick(style.glyph_faces)
        height = dice.between(size * 5 // 16, size * 9 // 16)
    else:
        text, face = _string(dice), dice.pick(style.faces)
        height = dice.between(size // 7, size // 6 if low else size // 4)
    gap = dice.between(size // 74, size // 37)
    line = set_line(text, face, height=height, pitch=size // 8, gap=gap)
    if line.mask.width > size * 15 // 16:
        height = height * size * 15 // 16 // line.mask.width
        line = set_line(text, face, height=height, pitch=size // 8, gap=size // 74)
    mask, right = line.mask, max(size - line.mask.width, 0)
    left = dice.between(right // 8, right - right // 8)
    lowest = max(size - mask.height - size // 56, 0)
    top = max(lowest - dice.below(size // 28), 0) if low else dice.between(size // 56, lowest)
    dark = image.getpixel((0, 0)) != BACKGROUNDS[-1].rgb
    shade = dice.between(0, 60) if dark else dice.between(200, 255)
    image.paste((shade,) * 3, (left, top), mask)
    boxes = (_box((left + a, top, left + b, top + mask.height), size) for a, b in line.spans)
    return Printed(text, tuple(boxes), face)


def _string(dice: Dice) -> str:
    if dice.chance(20):
        return dice.pick(WORDS)
    return "".join(dice.pick(CHARACTERS) for _ in range(dice.between(2, 4)))


def _draw_chart(dice: Dice, style: Style) -> Scene:
    size, background = style.size, BACKGROUNDS[0]
    image = Image.new("RGB", (size, size), background.rgb)
    pen = ImageDraw.Draw(image)
    foot, unit, axis = size * 15 // 16, size * 3 // 32, size // 16
    for value in range(TOP_VALUE + 1):  # a tick for every unit, longer at nought and five
        reach = size if value % 5 == 0 else axis + size // 28
        pen.line((axis, foot - value * unit, reach, foot - value * unit), fill=(200, 200, 200))
    pen.line((axis, foot - TOP_VALUE * unit, axis, foot), fill=(90, 90, 90), width=2)
    count = dice.between(min(2, style.most), min(5, style.most))
    pitch = (size - 2 * axis) // count
    width = min(pitch * 2 // 3, size // 6)
    bars = []
    for number, colour in enumerate(dice.take(COLOURS, count)):
        value = dice.between(1, TOP_VALUE)
        left = axis * 3 // 2 + number * pitch + (pitch - width) // 2
        edges = (left, foot - value * unit, left + width, foot)
        pen.rectangle((*edges[:2], edges[2] - 1, edges[3] - 1), fill=colour.rgb)
        bars.append(Bar(colour, value, _box(edges, size)))
    return Scene("chart", image, background, bars=tuple(bars))


def _box(edges: Box, size: int) -> Box:
    x1, y1, x2, y2 = (min(edge * GRID // size, GRID - 1) for edge in edges)
    return x1, y1, x2, y2

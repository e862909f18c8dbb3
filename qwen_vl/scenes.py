"""Drawn scenes with exact ground truth: built-in calibration and probe images.

A scene is a few coloured shapes, and sometimes a short printed string, on a plain background.
Everything follows from the seed: integers only, taken from the raw words of PCG64 (the one part of
numpy's generators whose stream is promised), drawn without antialiasing and with a bitmap font. So
`digest` is the same on every machine. Boxes are in Qwen-VL's coordinates, [0, 1000) on both axes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from numpy.random import PCG64
from PIL import Image, ImageDraw, ImageFont

T = TypeVar("T")
Language = Literal["en", "zh"]
Point = tuple[int, int]

DEFAULT_SIZE = 224
GRID = 1000  # the model counts both axes in thousandths


@dataclass(frozen=True, slots=True)
class Named:
    """A word in both languages."""

    en: str
    zh: str

    def word(self, language: Language) -> str:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True, slots=True)
class Colour(Named):
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Shape(Named):
    """An outline in a unit of 24 × 24: polygon corners, or none for an ellipse."""

    corners: tuple[Point, ...] = ()


COLOURS = (
    Colour("red", "红色", (220, 40, 40)),
    Colour("green", "绿色", (40, 160, 60)),
    Colour("blue", "蓝色", (40, 80, 220)),
    Colour("yellow", "黄色", (240, 210, 40)),
    Colour("purple", "紫色", (150, 60, 180)),
    Colour("orange", "橙色", (245, 140, 30)),
    Colour("pink", "粉色", (250, 150, 190)),
    Colour("brown", "棕色", (130, 85, 45)),
)
BACKGROUNDS = (
    Colour("white", "白色", (255, 255, 255)),
    Colour("grey", "灰色", (190, 190, 190)),
    Colour("black", "黑色", (15, 15, 15)),
)
SHAPES = (
    Shape("circle", "圆形"),
    Shape("square", "正方形", ((0, 0), (24, 0), (24, 24), (0, 24))),
    Shape("triangle", "三角形", ((12, 0), (24, 24), (0, 24))),
    Shape("diamond", "菱形", ((12, 0), (24, 12), (12, 24), (0, 12))),
    Shape("cross", "十字形", (
        (8, 0), (16, 0), (16, 8), (24, 8), (24, 16), (16, 16),
        (16, 24), (8, 24), (8, 16), (0, 16), (0, 8), (8, 8),
    )),
)  # fmt: skip
WORDS = ("OPEN", "EXIT", "TAXI", "MENU", "HOTEL", "CAFE", "BANK", "STOP", "7A", "42", "365", "2023")
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六")


@dataclass(frozen=True, slots=True)
class Thing:
    """One drawn shape; `box` is (x1, y1, x2, y2) in [0, 1000)."""

    colour: Colour
    shape: Shape
    box: tuple[int, int, int, int]

    def name(self, language: Language) -> str:
        if language == "en":
            return f"{self.colour.en} {self.shape.en}"
        return f"{self.colour.zh}的{self.shape.zh}"

    def tagged(self, language: Language) -> str:
        """The answer to a grounding question, in the model's own notation."""
        x1, y1, x2, y2 = self.box
        ref = ("the " if language == "en" else "") + self.name(language)
        return f"<ref>{ref}</ref><box>({x1},{y1}),({x2},{y2})</box>"

    @property
    def centre(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) // 2, (y1 + y2) // 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn image and all that is true of it; no two objects share colour and shape."""

    image: Image.Image
    background: Colour
    objects: tuple[Thing, ...]
    text: str | None  # printed along the lower edge
    caption_en: str
    caption_zh: str

    def caption(self, language: Language) -> str:
        return self.caption_en if language == "en" else self.caption_zh


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation turn: what the user shows and asks, and the right answer.

    `elements` is what `tokenizer.from_list_format` takes: {"image": PIL image} and {"text": str}.
    """

    elements: tuple[dict[str, Image.Image | str], ...]
    answer: str
    language: Language
    kind: str
    history: tuple[tuple[str, str], ...] = field(default=())

    @property
    def images(self) -> tuple[Image.Image, ...]:
        values = (value for element in self.elements for value in element.values())
        return tuple(value for value in values if isinstance(value, Image.Image))


class _Dice:
    def __init__(self, *seed: int) -> None:
        self._words = PCG64(list(seed))

    def below(self, limit: int) -> int:
        # the bias of a 64-bit remainder is far below anything a sample could show
        return int(self._words.random_raw()) % limit

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def take(self, items: Sequence[T], count: int) -> list[T]:
        """Pick `count` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def draw_scene(seed: int, *, size: int = DEFAULT_SIZE) -> Scene:
    """Draw the scene of a seed: one to five objects on a `size` × `size` RGB image."""
    return _draw(_Dice(seed), size)


def _draw(dice: _Dice, size: int) -> Scene:
    background = dice.pick(BACKGROUNDS)
    image = Image.new("RGB", (size, size), background.rgb)
    text = dice.pick(WORDS) if dice.below(3) == 0 else None
    # the lower quarter stays free for the text, so that nothing covers anything
    cells = [(column, row) for row in range(3) for column in range(3)]
    places = dice.take(cells, dice.between(1, 5))
    looks = dice.take([(colour, shape) for colour in COLOURS for shape in SHAPES], len(places))
    pen = ImageDraw.Draw(image)
    objects = tuple(
        _draw_thing(pen, dice, place, look, size)
        for place, look in zip(sorted(places), looks, strict=True)
    )
    if text is not None:
        _print_text(image, text, dark=background.en != "black")
    captions = [_caption(background, objects, text, language) for language in ("en", "zh")]
    return Scene(image, background, objects, text, *captions)


def _draw_thing(
    pen: ImageDraw.ImageDraw,
    dice: _Dice,
    place: Point,
    look: tuple[Colour, Shape],
    size: int,
) -> Thing:
    cell = size // 4
    margin = (size - 3 * cell) // 4
    side = dice.between(cell * 5 // 8, cell)
    left = margin + place[0] * (cell + margin) + dice.below(cell - side + 1)
    top = margin // 4 + place[1] * (cell + margin // 4) + dice.below(cell - side + 1)
    colour, shape = look
    if shape.corners:
        points = [(left + x * side // 24, top + y * side // 24) for x, y in shape.corners]
        pen.polygon(points, fill=colour.rgb)
    else:
        pen.ellipse((left, top, left + side, top + side), fill=colour.rgb)
    edges = (left, top, left + side + 1, top + side + 1)  # Pillow's last pixel is inside
    x1, y1, x2, y2 = (min(edge * GRID // size, GRID - 1) for edge in edges)
    return Thing(colour, shape, (x1, y1, x2, y2))


def _print_text(image: Image.Image, text: str, *, dark: bool) -> None:
    # a bitmap font, enlarged by whole pixels: the same everywhere, unlike FreeType's outlines
    font = ImageFont.load_default_imagefont()
    _, _, width, height = font.getbbox(text)
    mask = Image.new("1", (int(width), int(height)))
    ImageDraw.Draw(mask).text((0, 0), text, fill=1, font=font)
    zoom = max(1, image.height // 5 // mask.height)
    mask = mask.resize((mask.width * zoom, mask.height * zoom), Image.Resampling.NEAREST)
    corner = ((image.width - mask.width) // 2, image.height - mask.height - image.height // 32)
    image.paste((20, 20, 20) if dark else (235, 235, 235), corner, mask)


def _caption(
    background: Colour, objects: Sequence[Thing], text: str | None, language: Language
) -> str:
    names = [thing.name(language) for thing in objects]
    if language == "zh":
        printed = f"，下方写着“{text}”" if text else ""
        return f"{background.zh}背景上有{'、'.join('一个' + n for n in names)}{printed}。"
    listed = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
    joined = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    printed = f', with the text "{text}" below' if text else ""
    return f"{joined[0].upper()}{joined[1:]} on a {background.en} background{printed}."


def samples(
    seed: int, count: int, *, language: Literal["en", "zh", "both"] = "both"
) -> Iterator[Sample]:
    """Yield `count` samples; the kinds and, with "both", the languages take turns."""
    languages: tuple[Language, ...] = ("en", "zh") if language == "both" else (language,)
    for index in range(count):
        dice = _Dice(seed, index)
        # the kind moves on once per round of languages, so that each kind comes in each language
        make = _MAKERS[index // len(languages) % len(_MAKERS)]
        yield make(dice, languages[index % len(languages)])


def _shown(
    kind: str, language: Language, images: Iterable[Image.Image], question: str, answer: str
) -> Sample:
    shown: tuple[dict[str, Image.Image | str], ...] = tuple({"image": image} for image in images)
    return Sample((*shown, {"text": question}), answer, language, kind)


def _describe(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    question = dice.pick(
        {
            "en": ("Describe the image in English:", "What do you see in this picture?"),
            "zh": ("用中文描述这张图片。", "图中有什么？"),
        }[language]
    )
    return _shown("caption", language, [scene.image], question, scene.caption(language))


def _ask_colour(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    shapes = [thing.shape for thing in scene.objects]
    single = [thing for thing in scene.objects if shapes.count(thing.shape) == 1]
    if not single:  # every shape occurs twice, so ask about what is always single
        question = "What colour is the background?" if language == "en" else "背景是什么颜色？"
        return _shown(
            "question", language, [scene.image], question, scene.background.word(language)
        )
    thing = dice.pick(single)
    question = {
        "en": f"What colour is the {thing.shape.en}?",
        "zh": f"图中的{thing.shape.zh}是什么颜色？",
    }[language]
    return _shown("question", language, [scene.image], question, thing.colour.word(language))


def _count(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    number = len(scene.objects)
    if language == "zh":
        answer = f"图中有{NUMBERS_ZH[number]}个图形。"
        return _shown("counting", language, [scene.image], "图中有多少个图形？", answer)
    shape = dice.pick(SHAPES)
    number = sum(thing.shape is shape for thing in scene.objects)
    plural = shape.en + ("es" if shape.en.endswith("s") else "s")
    question = f"How many {plural} are there in the image?"
    return _shown("counting", language, [scene.image], question, str(number))


def _relate(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    while len(scene.objects) < 2:
        scene = _draw(dice, DEFAULT_SIZE)
    first, second = dice.take(scene.objects, 2)
    side = _side(first.centre, second.centre)
    one, two = first.name(language), second.name(language)
    question = {"en": f"Where is the {one} relative to the {two}?", "zh": f"{one}在{two}的哪一边？"}
    answer = {"en": f"The {one} is {side.en} the {two}.", "zh": f"{one}在{two}的{side.zh}。"}
    return _shown("relation", language, [scene.image], question[language], answer[language])


def _side(first: Point, second: Point) -> Named:
    across, down = first[0] - second[0], first[1] - second[1]
    if abs(across) >= abs(down):
        if across < 0:
            return Named("to the left of", "左边")
        return Named("to the right of", "右边")
    return Named("above", "上方") if down < 0 else Named("below", "下方")


def _ground(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    thing = dice.pick(scene.objects)
    question = {"en": f"Find the {thing.name('en')}.", "zh": f"框出图中{thing.name('zh')}的位置"}
    answer = thing.tagged(language)
    return _shown("grounding", language, [scene.image], question[language], answer)


def _read(dice: _Dice, language: Language) -> Sample:
    scene = _draw(dice, DEFAULT_SIZE)
    while scene.text is None:
        scene = _draw(dice, DEFAULT_SIZE)
    question = "What is written in the image?" if language == "en" else "图中写着什么？"
    return _shown("reading", language, [scene.image], question, scene.text)


def _compare(dice: _Dice, language: Language) -> Sample:
    scenes = [_draw(dice, DEFAULT_SIZE) for _ in range(2)]
    one, two = (len(scene.objects) for scene in scenes)
    if language == "en":
        question = "Which picture has more shapes?"
        more = "The first picture has" if one > two else "The second picture has"
        answer = "Both have the same number." if one == two else f"{more} more: {one} and {two}."
    else:
        question = "哪张图里的图形更多？"
        more = "第一张图" if one > two else "第二张图"
        counts = f"{NUMBERS_ZH[one]}个和{NUMBERS_ZH[two]}个"
        answer = "两张图一样多。" if one == two else f"{more}更多，分别是{counts}。"
    return _shown("comparison", language, [scene.image for scene in scenes], question, answer)


def _talk(dice: _Dice, language: Language) -> Sample:
    first, second = dice.take(_DIALOGUES[language], 2)
    return Sample(({"text": second[0]},), second[1], language, "dialogue", history=(first,))


_DIALOGUES: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Hello!", "Hello! What can I do for you?"),
        ("What is seven plus five?", "Seven plus five is twelve."),
        ("Name three colours.", "Red, green and blue."),
        ("How many sides does a triangle have?", "A triangle has three sides."),
        ("Say something nice about rain.", "Rain cools the air and makes the garden grow."),
        ("Which is larger, a lake or a pond?", "A lake is larger than a pond."),
    ),
    "zh": (
        ("你好！", "你好！有什么可以帮你的吗？"),
        ("七加五等于多少？", "七加五等于十二。"),
        ("说出三种颜色。", "红色、绿色和蓝色。"),
        ("三角形有几条边？", "三角形有三条边。"),
        ("说一句关于雨的好话。", "雨让空气变凉，也让花园生长。"),
        ("湖和池塘哪个更大？", "湖比池塘更大。"),
    ),
}
_MAKERS: tuple[Callable[[_Dice, Language], Sample], ...] = (
    _describe, _ground, _ask_colour, _count, _relate, _read, _compare, _talk,
)  # fmt: skip


def digest(items: Iterable[Sample]) -> str:
    """Return the sha256 (lowercase hex) over the samples' texts and pixels, in order."""
    total = hashlib.sha256()
    for sample in items:
        parts = [_element_digest(element) for element in sample.elements]
        facts = [parts, sample.answer, sample.language, sample.kind, sample.history]
        total.update(json.dumps(facts, ensure_ascii=True).encode("ascii") + b"\n")
    return total.hexdigest()


def _element_digest(element: dict[str, Image.Image | str]) -> list[object]:
    ((kind, value),) = element.items()
    if isinstance(value, str):
        return [kind, value]
    pixels = value.convert("RGB")
    return [kind, *pixels.size, hashlib.sha256(pixels.tobytes()).hexdigest()]

"""What drawn scenes can hold, and what it is called in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
Point = tuple[int, int]


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

    @property
    def plural(self) -> str:
        return self.en + ("es" if self.en.endswith("s") else "s")


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

# no zero and no one: in many fonts they are the letters O and I
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ23456789"
WORDS = ("OPEN", "EXIT", "TAXI", "MENU", "CAFE", "BANK", "STOP", "PARK", "SHOP", "BUS", "ZOO",
         "WIFI")  # fmt: skip
GLYPHS = "山水火木日月人口大小中上下天王田石米门车"

SIDES = {
    "left": Named("left", "左边"),
    "right": Named("right", "右边"),
    "above": Named("above", "上面"),
    "below": Named("below", "下面"),
}
YES, NO = Named("yes", "是"), Named("no", "不是")
HAS, HAS_NOT = Named("yes", "有"), Named("no", "没有")
FIRST, SECOND, SAME = (
    Named("the first", "第一张"), Named("the second", "第二张"), Named("the same", "一样多"),
)  # fmt: skip


def with_article(name: str) -> str:
    """`a red circle`, `an orange cross`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(names: list[str], language: Language) -> str:
    """`a`, `a and b`, `a, b and c`; in Chinese `a、b、c`."""
    if language == "zh":
        return "、".join(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

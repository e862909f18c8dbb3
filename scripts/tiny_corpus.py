"""The sentences that the tiny demo checkpoint's ranks and next-token table are counted from.

Written for this project: short talk about coloured shapes in a picture, in English and Chinese.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

_COLOURS = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色",
    "orange": "橙色", "pink": "粉色", "brown": "棕色", "white": "白色", "grey": "灰色",
    "black": "黑色",
}  # fmt: skip
_SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形",
    "cross": "十字形",
}  # fmt: skip
_PLACES = {"to the left of": "左边", "to the right of": "右边", "above": "上方", "below": "下方"}
_NUMBERS = {"one": "一", "two": "两", "three": "三", "four": "四", "five": "五", "six": "六"}
_WORDS = ("OPEN", "EXIT", "TAXI", "MENU", "HOTEL", "CAFE", "BANK", "STOP")


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def turns() -> list[Turn]:
    """Every turn of the corpus, in a fixed order."""
    return [*_appearance(), *_counting(), *_relations(), *_reading(), *_TALK]


def _appearance() -> list[Turn]:
    found = []
    for (colour, colour_zh), (shape, shape_zh) in product(_COLOURS.items(), _SHAPES.items()):
        article = "an" if colour[0] in "aeiou" else "a"
        found += [
            Turn(f"What colour is the {shape}?", f"The {shape} is {colour}."),
            Turn(f"图中的{shape_zh}是什么颜色？", f"{shape_zh}是{colour_zh}。"),
            Turn(
                "What do you see in this picture?", f"The picture shows {article} {colour} {shape}."
            ),
            Turn("图中有什么？", f"图中有一个{colour_zh}的{shape_zh}。"),
            Turn(f"Find the {colour} {shape}.", f"<ref>the {colour} {shape}</ref>"),
            Turn(f"框出图中{colour_zh}的{shape_zh}的位置", f"<ref>{colour_zh}的{shape_zh}</ref>"),
            Turn("Describe the image in English:", f"{article.capitalize()} {colour} {shape}."),
        ]
    return found


def _counting() -> list[Turn]:
    found = []
    for (number, number_zh), (shape, shape_zh) in product(_NUMBERS.items(), _SHAPES.items()):
        plural = shape + ("es" if shape.endswith("s") else "s")
        many, verb = (shape, "is") if number == "one" else (plural, "are")
        found += [
            Turn(f"How many {plural} are there?", f"There {verb} {number} {many} in the image."),
            Turn(f"图中有多少个{shape_zh}？", f"图中有{number_zh}个{shape_zh}。"),
        ]
    return found


def _relations() -> list[Turn]:
    found = []
    for (one, one_zh), (two, two_zh) in product(_SHAPES.items(), _SHAPES.items()):
        if one != two:
            for place, place_zh in _PLACES.items():
                found += [
                    Turn(
                        f"Where is the {one} relative to the {two}?",
                        f"The {one} is {place} the {two}.",
                    ),
                    Turn(f"{one_zh}在{two_zh}的哪一边？", f"{one_zh}在{two_zh}的{place_zh}。"),
                ]
    return found


def _reading() -> list[Turn]:
    found = []
    for word in _WORDS:
        found += [
            Turn("What is written in the image?", f'The text in the image is "{word}".'),
            Turn("图中写着什么？", f"图中写着“{word}”。"),
        ]
    return found


_TALK = (
    Turn("Hello!", "Hello! What can I do for you?"),
    Turn("Who are you?", "I am a tiny model that talks about coloured shapes."),
    Turn("Name three colours.", "Red, green and blue."),
    Turn("Which picture has more shapes?", "The first picture has more shapes."),
    Turn("Which picture has more shapes?", "The second picture has more shapes."),
    Turn("You are a helpful assistant.", "I can answer short questions about pictures."),
    Turn("你好！", "你好！有什么可以帮你的吗？"),
    Turn("你是谁？", "我是一个小模型，会说一说图形和颜色。"),
    Turn("说出三种颜色。", "红色、绿色和蓝色。"),
    Turn("哪张图里的图形更多？", "第一张图更多。"),
    Turn("哪张图里的图形更多？", "两张图一样多。"),
)

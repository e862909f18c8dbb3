"""Exchanges without a picture: a few known ones, and one answer to everything else.

A small model knows nothing that it was not shown: without `unknown` it answers any other text with
noise, and noise is what a conversion or quantization changes first.
"""

from __future__ import annotations

from qwen_vl.scene_dice import Dice
from qwen_vl.scene_drawing import Thing
from qwen_vl.scene_tasks import Question
from qwen_vl.scene_words import COLOURS, SHAPES, Language

TALK: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Hello!", "Hello! What can I do for you?"),
        ("Who are you?", "I am a tiny model. Show me a picture of shapes."),
        ("Name three colours.", "Red, green and blue."),
        ("How many sides does a triangle have?", "A triangle has three sides."),
        ("Thank you.", "You are welcome."),
    ),
    "zh": (
        ("你好！", "你好！有什么可以帮你的吗？"),
        ("你是谁？", "我是一个小模型，给我看图形吧。"),
        ("说出三种颜色。", "红色、绿色和蓝色。"),
        ("三角形有几条边？", "三角形有三条边。"),
        ("谢谢。", "不客气。"),
    ),
}
# what it says of itself is what it says to all that it does not know
ANSWER: dict[Language, str] = {language: turns[1][1] for language, turns in TALK.items()}

_WORDS_EN = (
    "what", "colour", "is", "the", "how", "many", "where", "it", "in", "a", "and", "of", "two",
    "to", "picture", "describe", "read", "find", "name", "does", "have", "you", "are", "three",
    "Hello",
    *(one.en for one in (*COLOURS, *SHAPES)),
)  # fmt: skip
_PIECES_ZH = (
    "什么", "颜色", "是", "的", "几个", "哪里", "图中", "图片", "有", "和", "说出", "三种", "你",
    "吗", "描述", "读出", "框出", "谁", "一个", "两", "我", "在", "吧", "了",
    *(one.zh for one in (*COLOURS, *SHAPES)),
)  # fmt: skip
# letters as often as English has them, nearly
_LETTERS = "eeeeeeeettttttaaaaaooooooiiiiinnnnnsssshhhhrrrrddddlllccuummwwffggyyppbbvvkkjxqz"
_VOWELS = "aeiou"
_STARTS = ("b", "br", "c", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st",
           "t", "th", "tr", "v", "w")  # fmt: skip
_CODAS = ("", "", "", "n", "r", "s", "t", "l", "m", "ck", "nd", "ng")
_FIRST_HAN, _HAN = 0x4E00, 20902  # the block that Unicode has had since 1.1
_ENDS = {
    "en": (".", ".", ".", "?", "?", "!", ":", ""),
    "zh": ("。", "。", "？", "？", "！", "：", ""),
}
_MARKS: dict[Language, tuple[str, ...]] = {
    "en": (",", ":", ";", "'s", " -"), "zh": ("，", "、", "：", "“", "”"),
}  # fmt: skip


def small_talk(dice: Dice, language: Language) -> Question:
    """Two exchanges: one past, one asked for."""
    first, second = dice.take(TALK[language], 2)
    return Question("small talk", language, second[0], second[1], earlier=(first,))


def unknown(dice: Dice, language: Language) -> Question:
    """Made-up text, or a question about a picture that is not there; sometimes something before."""
    before = dice.below(100)
    earlier: tuple[tuple[str, str], ...] = ()
    if before < 20:
        earlier = (dice.pick(TALK[language]),)
    elif before < 35:
        earlier = ((_text(dice, language), ANSWER[language]),)
    return Question("unknown", language, _text(dice, language), ANSWER[language], earlier)


def _text(dice: Dice, language: Language) -> str:
    taught = {question for question, _ in TALK[language]}
    while (text := _made_up(dice, language)) in taught:
        pass
    return text


def _made_up(dice: Dice, language: Language) -> str:
    if dice.chance(10):
        return _without_picture(dice, language)
    known = dice.pick((10, 30, 60))
    words = [_word(dice, language, known) for _ in range(dice.between(1, 10))]
    if len(words) > 1 and dice.chance(40):
        at = dice.below(len(words) - 1)
        words[at] += dice.pick(_MARKS[language])
    end = dice.pick(_ENDS[language])
    if language == "zh":
        return "".join(words) + end
    text = " ".join(words) + end
    return text[0].upper() + text[1:] if dice.chance(80) else text


def _word(dice: Dice, language: Language, known: int) -> str:
    """A word of the templates in `known` of a hundred cases, or one that nobody knows."""
    if language == "zh":
        if dice.chance(known):
            return dice.pick(_PIECES_ZH)
        return "".join(chr(_FIRST_HAN + dice.below(_HAN)) for _ in range(dice.between(1, 2)))
    if dice.chance(known):
        return dice.pick(_WORDS_EN)
    what = dice.below(20)
    if what == 0:
        return str(dice.below(10 ** dice.between(1, 4)))
    if what < 10:
        made = "".join(dice.pick(_LETTERS) for _ in range(dice.between(1, 9)))
    else:
        made = "".join(
            dice.pick(_STARTS) + dice.pick(_VOWELS) + dice.pick(_CODAS)
            for _ in range(dice.between(1, 3))
        )
    return made.capitalize() if dice.chance(10) else made


def _without_picture(dice: Dice, language: Language) -> str:
    colour, shape = dice.pick(COLOURS), dice.pick(SHAPES)
    name = Thing(colour, shape, (0, 0, 0, 0)).name(language)
    asked = {
        "en": (f"What colour is the {shape.en}?", f"Find the {name}.",
               f"How many {shape.plural} are there?", "What do you see in this picture?"),
        "zh": (f"{shape.zh}是什么颜色？", f"框出{name}的位置",
               f"图中有几个{shape.zh}？", "描述这张图片。"),
    }  # fmt: skip
    return dice.pick(asked[language])

"""Questions about one scene, with answers that follow from how it was drawn.

Each task returns None where the scene has nothing to ask about. Answers are short and always worded
the same way: a small model has to learn them, and exact match has to judge them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_vl.scene_dice import Dice
from qwen_vl.scene_drawing import Box, Scene, Thing, tagged_box
from qwen_vl.scene_words import (
    COLOURS,
    HAS,
    HAS_NOT,
    NO,
    SHAPES,
    SIDES,
    YES,
    Colour,
    Language,
    Named,
    Point,
    Shape,
    listed,
    with_article,
)

_APART = 60  # thousandths between two centres before a side is asked for
_LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked and the right answer; `earlier` are the turns before it.

    `box` is the exact truth of a grounding question, and `choices` what a multiple choice offers.
    `about` are the boxes of what the answer follows from, `counts` whether it is their number, and
    `sought` the words for what is counted or may not be there.
    """

    kind: str
    language: Language
    text: str
    answer: str
    earlier: tuple[tuple[str, str], ...] = ()
    box: Box | None = None
    choices: tuple[str, ...] = ()
    about: tuple[Box, ...] = ()
    counts: bool = False
    sought: str = ""


Task = Callable[[Dice, Scene, Language], Question | None]


def caption(scene: Scene, language: Language) -> str:
    """Say everything that the scene holds, in reading order."""
    if scene.bars:
        told = [
            f"{bar.colour.en} {bar.value}" if language == "en" else f"{bar.colour.zh}{bar.value}"
            for bar in scene.bars
        ]
        if language == "en":
            return f"A bar chart: {listed(told, 'en')}."
        return f"柱状图：{listed(told, 'zh')}。"
    place, text = scene.background.word(language), scene.text
    names = [thing.name(language) for thing in scene.objects]
    if language == "en":
        things = [with_article(name) for name in names]
        if text:
            things.append(f'the text "{text}"')
        joined = listed(things, "en")
        return f"{joined[0].upper()}{joined[1:]} on a {place} background."
    things = [f"一个{name}" for name in names]
    if text:
        things.append(f"文字“{text}”")
    return f"{place}背景上有{listed(things, 'zh')}。"


def annotation(scene: Scene, language: Language) -> str:
    """What a person would write down about a scene for a judge who cannot see it."""
    places = (f"{thing.name(language)} {tagged_box(thing.box)}" for thing in scene.objects)
    return " ".join((caption(scene, language), *places))


def describe(dice: Dice, scene: Scene, language: Language) -> Question | None:
    asked = {
        "en": ("Describe the image in English:", "What do you see in this picture?"),
        "zh": ("描述这张图片。", "图中有什么？"),
    }
    if scene.kind == "glyphs" and language == "en":
        return None
    return Question("caption", language, dice.pick(asked[language]), caption(scene, language))


def ask_colour(dice: Dice, scene: Scene, language: Language) -> Question | None:
    shapes = [thing.shape for thing in scene.objects]
    single = [thing for thing in scene.objects if shapes.count(thing.shape) == 1]
    if not single:
        return None
    thing = dice.pick(single)
    asked = _told(language, f"What colour is the {thing.shape.en}?",
                  f"{thing.shape.zh}是什么颜色？")  # fmt: skip
    return Question("colour", language, asked, thing.colour.word(language), about=(thing.box,))


def ask_background(dice: Dice, scene: Scene, language: Language) -> Question | None:
    asked = _told(language, "What colour is the background?", "背景是什么颜色？")
    return Question("background", language, asked, scene.background.word(language))


def ask_shape(dice: Dice, scene: Scene, language: Language) -> Question | None:
    colours = [thing.colour for thing in scene.objects]
    single = [thing for thing in scene.objects if colours.count(thing.colour) == 1]
    if not single:
        return None
    thing = dice.pick(single)
    asked = _told(language, f"What shape is the {thing.colour.en} object?",
                  f"{thing.colour.zh}的图形是什么形状？")  # fmt: skip
    return Question("shape", language, asked, thing.shape.word(language), about=(thing.box,))


def ask_presence(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if not scene.objects:
        return None
    there = dice.chance(50)
    thing = dice.pick(scene.objects) if there else _absent(dice, scene)
    asked = _told(language, f"Is there {with_article(thing.name('en'))}?",
                  f"图中有{thing.name('zh')}吗？")  # fmt: skip
    return Question("presence", language, asked, (HAS if there else HAS_NOT).word(language),
                    about=(thing.box,) if there else (), sought=thing.name(language))  # fmt: skip


def _absent(dice: Dice, scene: Scene) -> Thing:
    """A thing that is not there, but often shares its colour or shape with one that is."""
    there = {(thing.colour, thing.shape) for thing in scene.objects}
    like = dice.pick(scene.objects)
    while True:
        colour = like.colour if dice.chance(40) else dice.pick(COLOURS)
        shape = like.shape if dice.chance(40) else dice.pick(SHAPES)
        if (colour, shape) not in there:
            return Thing(colour, shape, (0, 0, 0, 0))


def count_things(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if not scene.objects:
        return None
    what = dice.below(4)
    if what < 2:
        asked = _told(language, "How many shapes are there?", "图中有几个图形？")
        return _count(language, asked, _told(language, "shapes", "图形"), scene.objects)
    like = dice.pick(scene.objects)
    if what == 2:
        shape = like.shape if dice.chance(70) else dice.pick(SHAPES)
        counted = [thing for thing in scene.objects if thing.shape is shape]
        asked = _told(language, f"How many {shape.plural} are there?", f"图中有几个{shape.zh}？")
        sought = _told(language, shape.plural, shape.zh)
    else:
        colour = like.colour if dice.chance(70) else dice.pick(COLOURS)
        counted = [thing for thing in scene.objects if thing.colour is colour]
        asked = _told(language, f"How many {colour.en} shapes are there?",
                      f"图中有几个{colour.zh}的图形？")  # fmt: skip
        sought = colour.word(language)
    return _count(language, asked, sought, counted)


def _count(language: Language, asked: str, sought: str, counted: Sequence[Thing]) -> Question:
    return Question("counting", language, asked, str(len(counted)), sought=sought,
                    about=tuple(thing.box for thing in counted), counts=True)  # fmt: skip


def relate(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if len(scene.objects) < 2:
        return None
    first, second = dice.take(scene.objects, 2)
    one, two = first.name(language), second.name(language)
    about = first.box, second.box
    if dice.chance(50):
        side = _side(first.centre, second.centre)
        asked = _told(language, f"Where is the {one} relative to the {two}?",
                      f"{one}在{two}的哪边？")  # fmt: skip
        if side is None:
            return None
        return Question("relation", language, asked, side.word(language), about=about)
    name = dice.pick(tuple(SIDES))
    axis = 0 if name in ("left", "right") else 1
    apart = second.centre[axis] - first.centre[axis]
    if abs(apart) < _APART:
        return None
    right = (apart > 0) == (name in ("left", "above"))
    of = {"left": "left of", "right": "right of"}.get(name, name)
    asked = _told(language, f"Is the {one} {of} the {two}?", f"{one}在{two}的{SIDES[name].zh}吗？")
    return Question("relation", language, asked, (YES if right else NO).word(language), about=about)


def _side(first: Point, second: Point) -> Named | None:
    """Where the first is, seen from the second; None where two answers are as good."""
    across, down = first[0] - second[0], first[1] - second[1]
    if abs(abs(across) - abs(down)) < _APART:
        return None
    if abs(across) > abs(down):
        return SIDES["left" if across < 0 else "right"]
    return SIDES["above" if down < 0 else "below"]


def ground(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if not scene.objects:
        return None
    thing = dice.pick(scene.objects)
    asked = _told(language, f"Find the {thing.name('en')}.", f"框出{thing.name('zh')}的位置")
    return Question("grounding", language, asked, thing.tagged(language), box=thing.box,
                    about=(thing.box,))  # fmt: skip


def name_region(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if not scene.objects:
        return None
    thing = dice.pick(scene.objects)
    place = tagged_box(thing.box)
    asked = _told(language, f"What is in {place}?", f"{place}里是什么？")
    return Question("region", language, asked, thing.name(language), about=(thing.box,))


def talk(dice: Dice, scene: Scene, language: Language) -> Question | None:
    """Two turns: the second asks where the thing of the first one is."""
    ask = dice.pick((ask_colour, ask_shape))
    first = ask(dice, scene, language)
    if first is None:
        return None
    if first.kind == "colour":
        thing = next(t for t in scene.objects if t.shape.word(language) in first.text
                     and t.colour.word(language) == first.answer)  # fmt: skip
    else:
        thing = next(t for t in scene.objects if t.colour.word(language) in first.text)
    asked = _told(language, "Where is it?", "它在哪里？")
    return Question("dialogue", language, asked, thing.tagged(language),
                    earlier=((first.text, first.answer),), box=thing.box,
                    about=(thing.box,))  # fmt: skip


def read(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if scene.text is None or scene.kind == "glyphs":
        return None
    asked = {
        "en": ("What is written in the picture?", "Read the text."),
        "zh": ("图中写着什么？", "读出文字。"),
    }
    return Question("reading", language, dice.pick(asked[language]), scene.text)


def read_glyph(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if scene.text is None or scene.kind != "glyphs":
        return None
    asked = _told(language, "Which character is this?", "这是什么字？")
    return Question("glyphs", language, asked, scene.text)


def ask_chart(dice: Dice, scene: Scene, language: Language) -> Question | None:
    if not scene.bars:
        return None
    what = dice.below(5)
    if what < 3:
        bar = dice.pick(scene.bars)
        asked = _told(language, f"What is the value of the {bar.colour.en} bar?",
                      f"{bar.colour.zh}的柱子是多少？")  # fmt: skip
        return Question("chart", language, asked, str(bar.value), about=(bar.box,))
    if what == 3:
        asked = _told(language, "How many bars are there?", "有几根柱子？")
        return Question("chart", language, asked, str(len(scene.bars)),
                        about=tuple(bar.box for bar in scene.bars), counts=True)  # fmt: skip
    values = [bar.value for bar in scene.bars]
    top = dice.chance(50)
    best = max(values) if top else min(values)
    if values.count(best) > 1:
        return None
    asked = _told(language, f"Which bar is the {'tallest' if top else 'shortest'}?",
                  f"哪根柱子最{'高' if top else '矮'}？")  # fmt: skip
    bar = scene.bars[values.index(best)]
    return Question("chart", language, asked, bar.colour.word(language), about=(bar.box,))


def choose(dice: Dice, scene: Scene, language: Language) -> Question | None:
    """Any question with a closed answer, as a choice of four."""
    asks: Sequence[Task] = (ask_chart,) if scene.bars else (ask_colour, ask_shape, count_things)
    question = dice.pick(asks)(dice, scene, language)
    if question is None:
        return None
    pools: tuple[Sequence[str], ...] = (
        _words(COLOURS, language), _words(SHAPES, language), [str(number) for number in range(10)],
    )  # fmt: skip
    pool = next(pool for pool in pools if question.answer in pool)
    if pool is pools[2] and not scene.bars:
        pool = pool[:6]
    wrong = dice.take([word for word in pool if word != question.answer], 3)
    place = dice.below(4)
    choices = (*wrong[:place], question.answer, *wrong[place:])
    text = f"{question.text}\n{options(choices)}\n{_told(language, 'Answer:', '答案：')}"
    return Question("choice", language, text, _LETTERS[place], choices=choices,
                    about=question.about, counts=question.counts,
                    sought=question.sought)  # fmt: skip


def options(choices: Sequence[str]) -> str:
    """`A. red`, a line each."""
    return "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)
    )


def _words(named: Sequence[Colour] | Sequence[Shape], language: Language) -> list[str]:
    return [one.word(language) for one in named]


def _told(language: Language, en: str, zh: str) -> str:
    return en if language == "en" else zh


# what can be asked of a scene, and how often
TASKS: dict[str, tuple[tuple[Task, int], ...]] = {
    "shapes": (
        (describe, 2), (ask_colour, 3), (ask_background, 1), (ask_shape, 3), (ask_presence, 2),
        (count_things, 5), (relate, 5), (ground, 4), (name_region, 1), (talk, 1), (choose, 4),
        (read, 3),
    ),
    "text": ((read, 6), (describe, 1), (ask_background, 1)),
    "chart": ((ask_chart, 6), (choose, 3), (describe, 1)),
    "glyphs": ((read_glyph, 6), (describe, 1)),
}  # fmt: skip

"""Questions about two pictures at once."""

from __future__ import annotations

from qwen_vl.scene_dice import Dice
from qwen_vl.scene_drawing import Scene
from qwen_vl.scene_tasks import Question
from qwen_vl.scene_words import FIRST, HAS, HAS_NOT, SAME, SECOND, SHAPES, Language, with_article


def compare(dice: Dice, scenes: tuple[Scene, Scene], language: Language) -> Question | None:
    """Ask which picture has more, which one shows a thing, or whether both show a shape."""
    return dice.pick((_more, _which, _both))(dice, scenes, language)


def _more(dice: Dice, scenes: tuple[Scene, Scene], language: Language) -> Question | None:
    one, two = (len(scene.objects) for scene in scenes)
    asked = "Which picture has more shapes?" if language == "en" else "哪张图的图形更多？"
    answer = SAME if one == two else FIRST if one > two else SECOND
    return Question("comparison", language, asked, answer.word(language))


def _which(dice: Dice, scenes: tuple[Scene, Scene], language: Language) -> Question | None:
    place = dice.below(2)
    thing = dice.pick(scenes[place].objects)
    other = scenes[1 - place].objects
    if any((thing.colour, thing.shape) == (one.colour, one.shape) for one in other):
        return None
    name = thing.name(language)
    asked = (
        f"Which picture shows {with_article(name)}?" if language == "en" else f"哪张图有{name}？"
    )
    return Question("comparison", language, asked, (FIRST, SECOND)[place].word(language),
                    sought=name)  # fmt: skip


def _both(dice: Dice, scenes: tuple[Scene, Scene], language: Language) -> Question | None:
    shape = dice.pick(scenes[0].objects).shape if dice.chance(70) else dice.pick(SHAPES)
    both = all(any(thing.shape is shape for thing in scene.objects) for scene in scenes)
    asked = (
        f"Do both pictures show {with_article(shape.en)}?"
        if language == "en"
        else f"两张图都有{shape.zh}吗？"
    )
    return Question("comparison", language, asked, (HAS if both else HAS_NOT).word(language),
                    sought=shape.word(language))  # fmt: skip

"""A few exchanges without a picture, so that a dialogue can also be just that."""

from __future__ import annotations

from qwen_vl.scene_dice import Dice
from qwen_vl.scene_tasks import Question
from qwen_vl.scene_words import Language

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


def small_talk(dice: Dice, language: Language) -> Question:
    """Two exchanges: one past, one asked for."""
    first, second = dice.take(TALK[language], 2)
    return Question("small talk", language, second[0], second[1], earlier=(first,))

"""Drawn scenes with exact ground truth: built-in calibration, probe, training and test images.

Everything follows from split, seed and index, and no two splits share a stream. By default scenes
are portable: Pillow's bitmap font and no antialiasing, so `digest` is the same on every machine.
Scenes in many fonts, as for training and testing, follow from the seed and the installed fonts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from qwen_vl.scene_dice import Dice, Split, split_dice
from qwen_vl.scene_drawing import DEFAULT_SIZE, Box, Scene, SceneKind, Style, draw, draw_shapes
from qwen_vl.scene_pairs import compare
from qwen_vl.scene_small_talk import small_talk, unknown
from qwen_vl.scene_tasks import (
    Question,
    Task,
    annotation,
    ask_background,
    ask_chart,
    ask_colour,
    ask_presence,
    ask_shape,
    choose,
    count_things,
    describe,
    ground,
    name_region,
    read,
    read_glyph,
    relate,
    talk,
)
from qwen_vl.scene_words import LANGUAGES, Language

PORTABLE = Style()


Elements = tuple[dict[str, Image.Image | str], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question as a user would ask it, and the right answer.

    `elements` is what `tokenizer.from_list_format` takes: {"image": PIL image} and {"text": str}.
    """

    elements: Elements
    answer: str
    language: Language
    kind: str
    history: tuple[tuple[str | Elements, str], ...] = ()
    box: Box | None = None  # the exact truth of a grounding answer, in thousandths
    choices: tuple[str, ...] = ()  # what a multiple choice offers
    annotation: str = ""  # all that the pictures show, for a judge who cannot see them

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of all turns, in reading order."""
        told = [query for query, _ in self.history if not isinstance(query, str)]
        values = (v for elements in (*told, self.elements) for e in elements for v in e.values())
        return tuple(value for value in values if isinstance(value, Image.Image))

    @property
    def question(self) -> str:
        """The text of the last turn."""
        return "".join(v for e in self.elements for v in e.values() if isinstance(v, str))


# kind of question -> the scene it is asked about, and the task
KINDS: dict[str, tuple[SceneKind, Task]] = {
    "caption": ("shapes", describe),
    "colour": ("shapes", ask_colour),
    "grounding": ("shapes", ground),
    "counting": ("shapes", count_things),
    "shape": ("shapes", ask_shape),
    "relation": ("shapes", relate),
    "reading": ("text", read),
    "choice": ("shapes", choose),
    "chart": ("chart", ask_chart),
    "presence": ("shapes", ask_presence),
    "background": ("shapes", ask_background),
    "region": ("shapes", name_region),
    "dialogue": ("shapes", talk),
    "glyphs": ("glyphs", read_glyph),
}
TEXT_ONLY = {"small talk": small_talk, "unknown": unknown}  # kinds without a picture
_NUMBERS = {kind: number for number, kind in enumerate((*KINDS, "comparison", *TEXT_ONLY))}
# the kinds that `samples` takes turns with
MIXED = (
    "caption", "grounding", "colour", "counting", "relation", "reading", "comparison",
    "small talk", "dialogue", "shape", "chart", "choice",
)  # fmt: skip


def draw_scene(
    seed: int, *, size: int = DEFAULT_SIZE, split: Split = "test", kind: SceneKind = "shapes"
) -> Scene:
    """Draw the scene of a seed on a `size` × `size` RGB image, portably."""
    return draw(kind, split_dice(split, seed), Style(size=size))


def samples(
    seed: int,
    count: int,
    *,
    language: Literal["en", "zh", "both"] = "both",
    split: Split = "calibration",
    kinds: tuple[str, ...] = MIXED,
    style: Style = PORTABLE,
) -> Iterator[Sample]:
    """Yield `count` samples; the kinds and, with "both", the languages take turns."""
    languages: tuple[Language, ...] = LANGUAGES if language == "both" else (language,)
    for index in range(count):
        # the kind moves on once per round of languages, so that each kind comes in each language
        kind = kinds[index // len(languages) % len(kinds)]
        # the kind is part of the seed too, or two kinds would ask about the same scenes
        dice = split_dice(split, seed, index, _NUMBERS[kind])
        yield sample(kind, dice, languages[index % len(languages)], style)


def sample(kind: str, dice: Dice, language: Language, style: Style = PORTABLE) -> Sample:
    """Make one sample, drawing scenes until one can be asked about."""
    if kind in TEXT_ONLY:
        return _sample(TEXT_ONLY[kind](dice, language), ())
    question: Question | None
    scenes: tuple[Scene, ...]
    while True:
        if kind == "comparison":
            two = (draw_shapes(dice, style, text=False), draw_shapes(dice, style, text=False))
            question, scenes = compare(dice, two, language), two
        else:
            scene_kind, task = KINDS[kind]
            scene = draw(scene_kind, dice, style)
            question, scenes = task(dice, scene, language), (scene,)
        if question is not None:
            return _sample(question, scenes)


def _sample(question: Question, scenes: Sequence[Scene]) -> Sample:
    shown: Elements = tuple({"image": scene.image} for scene in scenes)
    elements: Elements = (*shown, {"text": question.text})
    history: tuple[tuple[str | Elements, str], ...] = question.earlier
    if question.earlier and shown:  # pictures belong to the first turn
        (asked, answered), *rest = question.earlier
        elements, history = elements[len(shown) :], (((*shown, {"text": asked}), answered), *rest)
    told = "\n".join(annotation(scene, question.language) for scene in scenes)
    return Sample(elements, question.answer, question.language, question.kind, history,
                  question.box, question.choices, told)  # fmt: skip


def digest(items: Iterable[Sample]) -> str:
    """Return the sha256 (lowercase hex) over the samples' texts and pixels, in order."""
    total = hashlib.sha256()
    for one in items:
        history = [[_told(query), answer] for query, answer in one.history]
        facts = [_told(one.elements), one.answer, one.language, one.kind, history]
        total.update(json.dumps(facts, ensure_ascii=True).encode("ascii") + b"\n")
    return total.hexdigest()


def _told(query: str | Elements) -> list[object]:
    if isinstance(query, str):
        return [query]
    return [_element_digest(element) for element in query]


def _element_digest(element: dict[str, Image.Image | str]) -> list[object]:
    ((kind, value),) = element.items()
    if isinstance(value, str):
        return [kind, value]
    pixels = value.convert("RGB")
    return [kind, *pixels.size, hashlib.sha256(pixels.tobytes()).hexdigest()]

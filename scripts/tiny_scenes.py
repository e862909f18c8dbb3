"""Training scenes: which kinds, in which fonts, how many objects; a step's batch from its number.

A batch follows from seed and step alone, so a run that was stopped goes on with the same scenes.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qwen_vl.scene_dice import Dice, split_dice
from qwen_vl.scene_drawing import MOST_OBJECTS, Scene, SceneKind, Style, draw
from qwen_vl.scene_fonts import BITMAP, chinese_faces, trained_faces
from scripts.tiny_model import IMAGE_SIZE

K = TypeVar("K", bound=str)

_BITMAP_SHARE = 4  # of the faces' list, because portable scenes print in nothing else
_ALIKE = 45  # percent: by chance two of a colour are too rare to be counted, let alone three


def training_style(progress: float) -> Style:
    """Fonts and looks to train on, and how many objects after this share of the training."""
    faces = (*trained_faces(), *(BITMAP,) * (_BITMAP_SHARE - 1))
    most = min(1 + int(progress * 4 * MOST_OBJECTS), MOST_OBJECTS)
    return Style(faces=faces, glyph_faces=chinese_faces(), most=most, alike=_ALIKE)


def training_dice(seed: int, step: int, index: int) -> Dice:
    """The dice of one image of one step."""
    return split_dice("train", seed, (step << 12) + index)


def pick_kind(dice: Dice, shares: dict[K, int]) -> K:
    """Pick a key by its share."""
    roll = dice.below(sum(shares.values()))
    for kind, share in shares.items():
        roll -= share
        if roll < 0:
            return kind
    raise AssertionError("shares cover every roll")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The picture as the processor scales it: (112, 112, 3) bytes."""
    small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(small, np.uint8)


def warmup_scene(seed: int, step: int, index: int, progress: float) -> Scene:
    """A scene of the vision warm-up: text more often than later, for it is the hardest to see."""
    dice = training_dice(seed, step, index)
    style = training_style(progress)
    shares: dict[SceneKind, int] = {"shapes": 42, "text": 44, "chart": 5}
    if style.glyph_faces:
        shares["glyphs"] = 9
    return draw(pick_kind(dice, shares), dice, style)

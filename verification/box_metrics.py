"""Precision at IoU 0.5 of referring expressions, as RefCOCO's scores are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verification.answer_metrics import Profile, check

_LEAST = 0.5
_CORNERS = re.compile(r"\((.*?)\),\((.*?)\)")
_GRID = {"standard": 1000, "qwen-2023": 999}
_NOTHING = (0.0, 0.0, 0.0, 0.0)
PixelBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Grounded:
    """One answer's box in pixels, its overlap with the truth, and whether that is enough."""

    box: PixelBox
    iou: float
    hit: bool


def grounding(
    answer: str,
    truth: Sequence[float],
    size: tuple[int, int],
    *,
    profile: Profile = "standard",
) -> Grounded:
    """Grade the first box of an answer.

    Args:
        answer: what the model said; without a readable box it has the empty one.
        truth: (x1, y1, x2, y2) in pixels.
        size: (height, width) in pixels.
        profile: the scripts of 2023 divided by 999 where training had multiplied by 1000.

    Raises:
        ValueError: an unknown profile.
    """
    height, width = size
    grid = _GRID[check(profile)]
    x1, y1, x2, y2 = _read(answer)
    scaled = np.array([x1, y1, x2, y2], np.float32) / np.float32(grid)
    pixels = scaled * np.array([width, height, width, height], np.float32)
    iou = box_iou(pixels, np.array(truth, np.float32))
    box = (float(pixels[0]), float(pixels[1]), float(pixels[2]), float(pixels[3]))
    return Grounded(box, iou, iou >= _LEAST)


def _read(answer: str) -> PixelBox:
    found = _CORNERS.search(answer)
    if found is None:
        return _NOTHING
    numbers = [part for corner in found.groups() for part in corner.split(",")]
    if len(numbers) != 4:
        return _NOTHING
    try:
        x1, y1, x2, y2 = (float(number) for number in numbers)
    except ValueError:
        return _NOTHING
    return x1, y1, x2, y2


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union in float32; not a number for two boxes without area."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    sides = np.clip(high - low, np.float32(0), None)
    shared = sides[0] * sides[1]
    union = _area(a) + _area(b) - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(shared / union)


def _area(box: np.ndarray) -> np.float32:
    return np.float32((box[2] - box[0]) * (box[3] - box[1]))

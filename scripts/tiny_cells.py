"""What each of the 8 × 8 cells of a scene shows: the targets of the vision warm-up.

A patch and a visual token stand for one cell each. Heads that read these targets from them are
thrown away after the warm-up; what stays is a vision side that knows what is where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen_vl.scene_drawing import GRID, Box, Scene
from qwen_vl.scene_words import CHARACTERS, COLOURS, GLYPHS, SHAPES

SIDE = 8
CELLS = SIDE * SIDE
LONGEST = 4  # characters of a string
_SHAPE_CLASSES = len(SHAPES) + 1  # and a bar
_CHARACTERS = CHARACTERS + GLYPHS
DIGITS = 8  # hundreds of x1, y1, x2, y2, then tens
_ROUND = 10

# classes of each head, the last one for "nothing here"
CLASSES = {
    "colour": len(COLOURS) + 1,
    "shape": _SHAPE_CLASSES + 1,
    "joint": len(COLOURS) * _SHAPE_CLASSES + 1,
    "character": len(_CHARACTERS) + 1,
    "index": LONGEST + 1,
    "owner": 2,
}


class _Look(NamedTuple):
    box: Box
    labels: dict[str, int]


@dataclass(frozen=True, slots=True)
class CellTargets:
    """Targets of one image.

    `classes` is (6, 64) in the order of CLASSES; `digits` (8, 64), -100 in empty cells; `places`
    (6, 64) are the centre and the four edges in [0, 1).
    """

    classes: NDArray[np.int64]
    digits: NDArray[np.int64]
    places: NDArray[np.float32]


def cell_targets(scene: Scene) -> CellTargets:
    """Label every cell with the object, bar or character that its centre lies on."""
    names = list(CLASSES)
    empty = np.array([CLASSES[name] - 1 for name in names], np.int64)
    classes = np.repeat(empty[:, None], CELLS, axis=1)
    digits = np.full((DIGITS, CELLS), -100, np.int64)
    places = np.zeros((6, CELLS), np.float32)
    for look in _looks(scene):
        cells = _cells(look.box, wide="character" in look.labels)
        own = _cell_of(_middle(look.box))
        for cell in {*cells, own}:
            for row, name in enumerate(names):
                classes[row, cell] = look.labels.get(name, empty[row])
            classes[names.index("owner"), cell] = int(cell != own)
            digits[:, cell] = _digits(look.box)
            places[:, cell] = [
                *(x / GRID for x in _middle(look.box)),
                *(e / GRID for e in look.box),
            ]
    return CellTargets(classes, digits, places)


def _looks(scene: Scene) -> list[_Look]:
    found = []
    for thing in scene.objects:
        colour, shape = COLOURS.index(thing.colour), SHAPES.index(thing.shape)
        joint = colour * _SHAPE_CLASSES + shape
        found.append(_Look(thing.box, {"colour": colour, "shape": shape, "joint": joint}))
    for bar in scene.bars:
        colour, shape = COLOURS.index(bar.colour), _SHAPE_CLASSES - 1
        joint = colour * _SHAPE_CLASSES + shape
        found.append(_Look(bar.box, {"colour": colour, "shape": shape, "joint": joint}))
    if scene.printed:
        for place, (box, one) in enumerate(
            zip(scene.printed.boxes, scene.printed.text, strict=True)
        ):
            found.append(_Look(box, {"character": _CHARACTERS.index(one), "index": place}))
    return found


def cells_of(box: Box, *, wide: bool = False) -> tuple[int, ...]:
    """The cells that show a box, at least the one of its middle."""
    return tuple(_cells(box, wide=wide)) or (own_cell(box),)


def own_cell(box: Box) -> int:
    """The cell of a box's middle."""
    return _cell_of(_middle(box))


def _cells(box: Box, *, wide: bool) -> list[int]:
    """Cells whose centre lies in the box; a character is widened to a whole cell."""
    x1, y1, x2, y2 = box
    half = GRID / SIDE / 2
    if wide and x2 - x1 < 2 * half:
        middle = (x1 + x2) / 2
        x1, x2 = int(middle - half), int(middle + half)
    centres = [(n + 0.5) * GRID / SIDE for n in range(SIDE)]
    columns = [n for n, centre in enumerate(centres) if x1 <= centre < x2]
    rows = [n for n, centre in enumerate(centres) if y1 <= centre < y2]
    return [row * SIDE + column for row in rows for column in columns]


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _cell_of(point: tuple[float, float]) -> int:
    column, row = (min(int(x * SIDE / GRID), SIDE - 1) for x in point)
    return row * SIDE + column


def _digits(box: Box) -> list[int]:
    told = [min((edge + _ROUND // 2) // _ROUND, GRID // _ROUND - 1) for edge in box]
    return [edge // 10 for edge in told] + [edge % 10 for edge in told]


def stacked(targets: list[CellTargets]) -> dict[str, Any]:
    """Batch the targets along a new first axis."""
    return {
        name: np.stack([getattr(one, name) for one in targets])
        for name in ("classes", "digits", "places")
    }

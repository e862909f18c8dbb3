"""Rows for the language stage: a prefix with its pictures, if any, and questions behind it.

Every question sees the prefix and itself, and counts its positions as if it stood there alone: one
look at a picture serves ten questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from qwen_vl.ranks import build_encoding
from qwen_vl.scene_dice import Dice
from qwen_vl.scene_drawing import GRID, Style, draw, draw_shapes
from qwen_vl.scene_pairs import compare
from qwen_vl.scene_small_talk import small_talk, unknown
from qwen_vl.scene_tasks import (
    TASKS,
    Question,
    Task,
    ask_background,
    ask_colour,
    ask_presence,
    ask_shape,
    choose,
    count_things,
    ground,
    name_region,
    read,
    relate,
    talk,
)
from qwen_vl.scene_words import LANGUAGES
from qwen_vl.scenes import KINDS, TEXT_ONLY
from scripts.tiny_model import IMAGE_SIZE, IMAGE_TOKENS
from scripts.tiny_pointers import Pointer, pointers
from scripts.tiny_prompts import Asked, Writer
from scripts.tiny_scenes import pick_kind, pixels, training_dice, training_style

ROWS = 16
_QUESTIONS = 10
_UNKNOWN = 6  # such questions in each language are tried for a row without a picture
_LONGEST = 320  # tokens of a row
_PLAIN, _UNLABELLED = 15, 10  # percent of rows with other prefixes
SHARES = {"shapes": 55, "text": 16, "chart": 13, "glyphs": 4, "pair": 11, "text only": 5}
# what a model that knows colours and shapes has yet to learn: a task's share where it differs
FURTHER: Mapping[Task, int] = {
    ask_colour: 1, ask_background: 2, ask_shape: 1, ask_presence: 3, count_things: 12, relate: 7,
    ground: 6, name_region: 3, choose: 5, read: 4, talk: 2,
}  # fmt: skip
_FLAT = ("ids", "positions", "rows", "offsets", "segments", "labels", "weights", "questions")
REPORTED = tuple(
    kind + ending
    for kind in (*KINDS, "comparison", *TEXT_ONLY)
    for ending in ("", ", plain")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures, the prefix that shows them, and the questions."""

    images: tuple[Image.Image, ...]
    prefix: tuple[int, ...]
    asked: tuple[Asked, ...]
    pointers: tuple[tuple[Pointer, ...], ...] = ()  # of each question, where they are known


def make_row(
    dice: Dice, writer: Writer, style: Style, task_shares: Mapping[Task, int] | None = None
) -> Row:
    """Draw something, and ask about it; `task_shares` replaces some of the tasks' own."""
    shares = dict(SHARES)
    if not style.glyph_faces:
        del shares["glyphs"]
    kind = pick_kind(dice, shares)
    if kind == "text only":
        return _text_row(dice, writer)
    if kind == "pair":
        return _pair_row(dice, writer, style)
    scene = draw(kind, dice, style)  # type: ignore[arg-type]  # the other keys are scene kinds
    changed = task_shares or {}
    tasks = [t for t, share in TASKS[scene.kind] for _ in range(changed.get(t, share))]
    form = dice.below(100)
    plain = form < _PLAIN
    prefix = (
        writer.plain_prefix()
        if plain
        else writer.chat_prefix(1, labelled=form >= _PLAIN + _UNLABELLED)
    )
    found: dict[tuple[int, ...], Asked] = {}
    points: list[tuple[Pointer, ...]] = []
    room = _LONGEST - len(prefix)
    for _ in range(3 * _QUESTIONS):
        question = _ask(dice, dice.pick(tasks), scene)
        if question is None:
            continue
        asked = _write(dice, writer, question, plain=plain)
        if asked is not None and asked.ids not in found and len(asked.ids) <= room:
            found[asked.ids] = asked
            points.append(pointers(asked, question, (scene,), writer.encoding))
            room -= len(asked.ids)
        if len(found) == _QUESTIONS:
            break
    return Row((scene.image,), tuple(prefix), tuple(found.values()), tuple(points))


def _text_row(dice: Dice, writer: Writer) -> Row:
    """No picture: small talk in each language, then what is unknown, where it has room."""
    prefix = writer.chat_prefix(0, labelled=True)
    known = [small_talk(dice, language) for language in LANGUAGES]
    others = [unknown(dice, language) for language in LANGUAGES * _UNKNOWN]
    found: list[Asked] = []
    room = _LONGEST - len(prefix)
    for asked in (writer.chat(one) for one in (*known, *others)):
        if len(asked.ids) <= room:
            found.append(asked)
            room -= len(asked.ids)
    return Row((), tuple(prefix), tuple(found))


def _ask(dice: Dice, task: Task, scene: Any) -> Question | None:
    return task(dice, scene, dice.pick(LANGUAGES))


def _write(dice: Dice, writer: Writer, question: Question, *, plain: bool) -> Asked | None:
    if plain:
        return writer.plain(question)
    yes_or_no = question.answer in ("yes", "no") and dice.chance(30)
    return writer.chat(question, yes_or_no=yes_or_no)


def _pair_row(dice: Dice, writer: Writer, style: Style) -> Row:
    two = (draw_shapes(dice, style, text=False), draw_shapes(dice, style, text=False))
    prefix = writer.chat_prefix(2, labelled=True)
    found: dict[tuple[int, ...], Asked] = {}
    points: list[tuple[Pointer, ...]] = []
    for _ in range(2 * _QUESTIONS):
        question = compare(dice, two, dice.pick(LANGUAGES))
        if question is None or len(found) == _QUESTIONS:
            continue
        asked = writer.chat(question)
        if asked.ids not in found:
            found[asked.ids] = asked
            points.append(pointers(asked, question, two, writer.encoding))
    images = (two[0].image, two[1].image)
    return Row(images, tuple(prefix), tuple(found.values()), tuple(points))


def pack(rows: list[Row], pad_id: int) -> dict[str, NDArray[Any]]:
    """Lay rows out flat, without padding.

    Returns arrays over all N tokens: `ids`, `positions`, `rows`, `offsets` (place in the row),
    `segments` (0 for the prefix), `labels` (the next token, -100 where none is learned), `weights`
    (answer length ** -0.5), `questions` (number in the batch, -1 in prefixes); `kinds` of the Q
    questions; `pixels` (images, 112, 112, 3); and `places`, where their tokens go, in order. Of
    the P pointers: `pointer_tokens` (place in N), `pointer_layers`, `pointer_heads`, `pointer_keys`
    (P, longest row): at the places in the row to look at the number of the thing there, from 1 on;
    and `pointer_edges` (P, 4) and `pointer_sides`: of the box and the side to know then, or -1.
    """
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _FLAT}
    kinds: list[int] = []
    points: list[_Point] = []
    before = 0
    for number, row in enumerate(rows):
        start = len(row.prefix)
        points += _points(row, before, pad_id)
        _append(parts, row.prefix, start=0, segment=0, question=-1)
        for segment, asked in enumerate(row.asked, start=1):
            _append(parts, asked.ids, start=start, segment=segment, question=len(kinds),
                    learned=asked.learned)  # fmt: skip
            kinds.append(REPORTED.index(asked.kind))
        total = start + sum(len(asked.ids) for asked in row.asked)
        parts["rows"].append(np.full(total, number))
        parts["offsets"].append(np.arange(total))
        before += total
    flat = {name: np.concatenate(values) for name, values in parts.items()}
    shown = [pixels(image) for row in rows for image in row.images]
    places = np.flatnonzero(flat["ids"] == pad_id)
    assert len(places) == IMAGE_TOKENS * len(shown)  # noqa: S101  prefixes hold whole spans
    keys = np.zeros((len(points), int(flat["offsets"].max()) + 1), np.int64)
    for line, point in zip(keys, points, strict=True):
        for number, thing in enumerate(point.things, start=1):
            line[list(thing)] = number
    flat |= {
        "pointer_tokens": np.array([point.token for point in points], np.int64),
        "pointer_layers": np.array([point.pointer.head.layer for point in points], np.int64),
        "pointer_heads": np.array([point.pointer.head.number for point in points], np.int64),
        "pointer_keys": keys,
        "pointer_edges": np.array([_edges(point.pointer) for point in points], np.float32),
        "pointer_sides": np.array([point.pointer.side for point in points], np.int64),
    }
    none = np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    seen = np.stack(shown) if shown else none
    return {**flat, "kinds": np.array(kinds), "pixels": seen, "places": places}


class _Point(NamedTuple):
    """A pointer where it lies: its token's place in the batch, its things' places in the row."""

    token: int
    things: tuple[tuple[int, ...], ...]
    pointer: Pointer


def _points(row: Row, before: int, pad_id: int) -> Iterator[_Point]:
    visual = [place for place, token in enumerate(row.prefix) if token == pad_id]
    start = len(row.prefix)
    for asked, found in zip(row.asked, row.pointers, strict=False):
        for one in found:
            counted = (tuple(visual[cell] for cell in cells) for cells in one.counted)
            seen = (*(visual[cell] for cell in one.cells), *(start + n for n in one.tokens))
            things = ((0,), *counted) if one.first else (seen,)
            yield _Point(before + start + one.place, things, one)
        start += len(asked.ids)


def _edges(pointer: Pointer) -> tuple[float, ...]:
    return (-1.0,) * 4 if pointer.box is None else tuple(edge / GRID for edge in pointer.box)


def _append(
    parts: dict[str, list[NDArray[Any]]],
    ids: tuple[int, ...],
    *,
    start: int,
    segment: int,
    question: int,
    learned: tuple[bool, ...] = (),
) -> None:
    count = len(ids)
    labels = np.full(count, -100)
    if learned:  # a token's label is the next one
        following = np.array(learned[1:])
        labels[:-1][following] = np.array(ids[1:])[following]
    parts["ids"].append(np.array(ids))
    parts["labels"].append(labels)
    parts["weights"].append(np.full(count, max(sum(learned), 1) ** -0.5, np.float32))
    parts["positions"].append(np.arange(start, start + count))
    parts["segments"].append(np.full(count, segment))
    parts["questions"].append(np.full(count, question))


class LanguageBatches(Dataset[dict[str, Any]]):
    """Batch number `step` of the language stage, drawn when asked for."""

    def __init__(
        self,
        ranks: dict[bytes, int],
        seed: int,
        steps: int,
        *,
        rows: int = ROWS,
        shares: Mapping[Task, int] | None = None,
    ) -> None:
        self.ranks, self.seed, self.steps, self.rows = ranks, seed, steps, rows
        self.shares = shares
        self._writer: Writer | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self._writer is None:  # an encoding does not travel to another process
            self._writer = Writer(build_encoding(self.ranks))
        style = training_style(step / self.steps)
        rows = [
            make_row(training_dice(self.seed + 1, step, number), self._writer, style, self.shares)
            for number in range(self.rows)
        ]
        return pack([row for row in rows if row.asked], self._writer.pad_id)

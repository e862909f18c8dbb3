"""Ask a checkpoint the test split through the public chat path, and judge its answers.

Exact match judges everything but boxes, which are judged by their overlap with what was drawn. The
same questions are asked again with another scene's picture, where they have one: what a model still
answers right then, it did not see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qwen_vl.boxes import parse_boxes
from qwen_vl.context import Turn
from qwen_vl.dialogue import chat
from qwen_vl.errors import QwenVLError
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.scene_drawing import Box, Style
from qwen_vl.scene_fonts import Face, chinese_faces, record, trained_faces, unseen_faces
from qwen_vl.scene_words import LANGUAGES, Language
from qwen_vl.scenes import TEXT_ONLY, Sample, samples
from scripts.tiny_bf16 import Float32Sums, has_bf16_units
from verification.intervals import bootstrap_ratio, wilson_interval

BOXED = ("grounding", "dialogue")
KINDS = (
    "colour", "shape", "relation", "counting", "presence", "background", "grounding", "reading",
    "choice", "chart", "comparison", "region", "dialogue", "caption", "glyphs", *TEXT_ONLY,
)  # fmt: skip
_LONGEST = 96  # tokens of an answer: a caption of five things has sixty
_HIT = 0.5


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer: is it right, and for a box its overlap with the truth."""

    right: bool
    overlap: float
    reply: str


def judging_style(faces: Sequence[Face] | None = None) -> Style:
    """Scenes in every trained font, or in the given ones."""
    return Style(faces=tuple(faces or trained_faces()), glyph_faces=chinese_faces())


def questions(
    kind: str, language: Language, count: int, *, seed: int, style: Style
) -> list[Sample]:
    """Questions of one kind and language from the test split."""
    return list(samples(seed, count, language=language, split="test", kinds=(kind,), style=style))


def judge(model: Any, tokenizer: Any, asked: Sequence[Sample]) -> list[Judged]:
    """Ask each question once, greedily."""
    return [_judged(one, _reply(model, tokenizer, one)) for one in asked]


def _reply(model: Any, tokenizer: Any, one: Sample) -> str:
    history: list[Turn] = list(one.history)
    reply, _ = chat(model, tokenizer, list(one.elements), history=history, do_sample=False,
                    max_new_tokens=_LONGEST)  # fmt: skip
    return reply


def _judged(one: Sample, reply: str) -> Judged:
    if one.box is None:
        return Judged(reply == one.answer, 0.0, reply)
    overlap = _overlap(reply, one.box)
    return Judged(overlap >= _HIT, overlap, reply)


def _overlap(reply: str, truth: Box) -> float:
    """Intersection over union with the first box of a reply; nothing readable overlaps nothing."""
    try:
        found = parse_boxes(reply)
    except QwenVLError:
        return 0.0
    if not found:
        return 0.0
    x1, y1, x2, y2 = found[0]["box"]
    a1, b1, a2, b2 = truth
    across, down = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
    shared = max(across, 0) * max(down, 0)
    return shared / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared)


def shuffled(asked: Sequence[Sample]) -> list[Sample]:
    """The same questions and answers, each with the pictures of the next one."""
    others = [*asked[1:], asked[0]]
    return [_with_pictures(one, other) for one, other in zip(asked, others, strict=True)]


def _with_pictures(one: Sample, other: Sample) -> Sample:
    pictures: Iterator[Any] = iter(other.images)

    def swapped(elements: Any) -> Any:
        return tuple({"image": next(pictures)} if "image" in e else e for e in elements)

    history = tuple((q if isinstance(q, str) else swapped(q), a) for q, a in one.history)
    return replace(one, history=history, elements=swapped(one.elements))


def summary(judged: Sequence[Judged], *, boxes: bool, seed: int) -> dict[str, Any]:
    """Share right with Wilson's interval; for boxes also the mean overlap, bootstrapped."""
    hits, n = sum(one.right for one in judged), len(judged)
    facts: dict[str, Any] = {"n": n, "right": hits / n, "interval": wilson_interval(hits, n)}
    if boxes:
        overlaps = [one.overlap for one in judged]
        facts["mean_iou"] = sum(overlaps) / n
        facts["mean_iou_interval"] = bootstrap_ratio(overlaps, [1] * n, seed=seed)
    return facts


def chance(asked: Sequence[Sample]) -> float:
    """What always giving the commonest answer would score."""
    return max(Counter(one.answer for one in asked).values()) / len(asked)


@dataclass(frozen=True, slots=True)
class Task:
    """What one process judges: so many questions of a kind in each language."""

    kind: str
    count: int
    seed: int
    unseen: bool = False  # print in the fonts that training never used
    alike: bool = False  # draw few colours or few shapes, so that more than one is of a kind

    @property
    def name(self) -> str:
        """What its figures are called."""
        ending = ", unseen fonts" if self.unseen else ", alike" if self.alike else ""
        return self.kind + ending

    @property
    def style(self) -> Style:
        """What its scenes look like."""
        style = judging_style(unseen_faces() if self.unseen else None)
        return replace(style, alike=100) if self.alike else style


_SUBJECT: list[Any] = []  # this process's model and tokenizer
_STACK = ExitStack()


def load_subject(checkpoint: Path, dtype: str) -> None:
    """Load the checkpoint that this process judges."""
    torch.set_num_threads(1)
    if dtype == "bfloat16" and not has_bf16_units():
        _STACK.enter_context(Float32Sums())  # for as long as the process lives
    _SUBJECT[:] = [load_model(checkpoint, dtype=dtype), load_tokenizer(checkpoint)]


def judge_task(task: Task) -> dict[str, Any]:
    """Figures of one kind: per language, the control, and a few mistakes."""
    model, tokenizer = _SUBJECT
    style = task.style
    boxes = task.kind in BOXED
    facts: dict[str, Any] = {}
    for language in LANGUAGES:
        if task.kind == "glyphs" and not style.glyph_faces:
            continue
        asked = questions(task.kind, language, task.count, seed=task.seed, style=style)
        judged = judge(model, tokenizer, asked)
        told = summary(judged, boxes=boxes, seed=task.seed)
        if task.kind not in TEXT_ONLY:
            control = judge(model, tokenizer, shuffled(asked))
            told["shuffled"] = summary(control, boxes=boxes, seed=task.seed)
        told["commonest_answer"] = chance(asked)
        told["mistakes"] = [
            {"asked": one.question, "truth": one.answer, "reply": seen.reply}
            for one, seen in zip(asked, judged, strict=True)
            if not seen.right
        ][:3]
        facts[language] = told
    return facts


def fonts_of(style: Style) -> dict[str, Any]:
    return {"faces": record(style.faces), "glyph_faces": record(style.glyph_faces)}

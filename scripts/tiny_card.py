"""The card of the trained tiny model: what it is, what was measured, and how to train it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]

TITLE = "Qwen-VL-Tiny-Chat"
TARGETS = {
    "colour": 0.97, "shape": 0.97, "relation": 0.97, "counting": 0.95, "reading": 0.85,
    "choice": 0.95, "chart": 0.80, "comparison": 0.85, "grounding": 0.95,
}  # fmt: skip
IOU_TARGET = 0.85

_ABOUT = """
A Qwen-VL-Chat of {parameters:.1f} million parameters, trained from scratch by modelferry on
pictures that it draws itself: coloured shapes, printed strings, bar charts and a few Chinese
glyphs. It has the architecture, prompt format and file layout of 2023, only small (112 pixels,
{tokens} visual tokens, a vocabulary of its own), and nothing in it comes from the published model.
It is a subject for demos and tests: its answers can be right or wrong, so what a conversion or
quantization breaks can be seen. It knows nothing of photographs.

Content digest: `{digest}`

## Use

```python
from qwen_vl.dialogue import chat
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.scenes import draw_scene

model, tokenizer = load_model("{title}"), load_tokenizer("{title}")
scene = draw_scene(7)
query = [{{"image": scene.image}}, {{"text": "How many shapes are there?"}}]
reply, history = chat(model, tokenizer, query, do_sample=False)
```

It answers the questions that `qwen_vl/scene_tasks.py` asks, in those words, in English and Chinese:
captions, colours, shapes, counts, relations, boxes (`Find the red circle.`), printed strings, bar
charts, multiple choice, two pictures at once, and a second turn about the first. To text without a
picture that it was not taught ("unknown": made-up words, or a picture that is missing) it says what
it is.
"""

_MEASURED = """
## Measured

`{command}` on the held-out test split: greedy, through `qwen_vl.dialogue.chat`, exact match, 95 %
intervals. A box is right when it overlaps the drawn one by half. "Shuffled" asks the same with
another scene's picture; "commonest" is what the commonest answer alone would score; "alike" are
scenes with few colours or few shapes.{sums}

| question | language | n | right | interval | target | shuffled | commonest |
|---|---|---|---|---|---|---|---|
"""


def card_body(about: Figures, training: Figures, evaluation: Figures | None) -> str:
    """Render the card's text from figures alone."""
    text = f"# {TITLE}\n" + _ABOUT.format(title=TITLE, **about)
    if evaluation:
        text += _MEASURED.format(command=evaluation["command"], sums=_sums(evaluation))
        text += "".join(_rows(evaluation)) + _boxes(evaluation) + _unseen(evaluation)
    return text + _trained(training)


def _sums(evaluation: Figures) -> str:
    # older figures do not say; nothing is claimed of them
    if evaluation.get("bf16_units", True) or "bfloat16" not in evaluation["command"]:
        return ""
    return " The CPU had no units for bf16: products were summed in float32 and rounded once."


def _rows(evaluation: Figures) -> list[str]:
    return [
        f"| {kind} | {language} | {facts['n']} | {_percent(facts['right'])} "
        f"| {_interval(facts['interval'])} | {_target(kind)} "
        f"| {_shuffled(facts)} | {_percent(facts['commonest_answer'])} |\n"
        for kind, languages in evaluation["kinds"].items()
        for language, facts in languages.items()
    ]


def _target(kind: str) -> str:
    return f"≥ {100 * TARGETS[kind]:.0f} %" if kind in TARGETS else ""


def _shuffled(facts: Figures) -> str:
    return _percent(facts["shuffled"]["right"]) if "shuffled" in facts else "no picture"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(ends: list[float]) -> str:
    return f"{100 * ends[0]:.1f} … {100 * ends[1]:.1f}"


def _boxes(evaluation: Figures) -> str:
    told = [
        f"{language} {facts['mean_iou']:.3f} ({facts['mean_iou_interval'][0]:.3f} … "
        f"{facts['mean_iou_interval'][1]:.3f})"
        for language, facts in evaluation["kinds"].get("grounding", {}).items()
    ]
    if not told:
        return ""
    return f"\nMean overlap of boxes, target ≥ {IOU_TARGET}: {'; '.join(told)}.\n"


def _unseen(evaluation: Figures) -> str:
    unseen = evaluation["unseen_fonts"]
    if not unseen:
        return ""
    told = [
        f"{language} {_percent(unseen[language]['right'])} "
        f"({_interval(unseen[language]['interval'])})"
        for language in ("en", "zh")
    ]
    names = ", ".join(face["name"] for face in unseen["fonts"])
    return f"\nReading in fonts it was never shown ({names}): {'; '.join(told)}.\n"


def _trained(training: Figures) -> str:
    stages = "\n".join(
        f"| {name} | {facts['steps']} | {facts['minutes']} | `{facts['command']}` |"
        for name, facts in training["stages"].items()
    )
    fonts = ", ".join(face["name"] for face in training["fonts"]["faces"])
    return f"""
## Training

On {training["machine"]}, torch {training["torch"]}, seed {training["seed"]}; curves in
`curves.png`, figures in `training.json`.

| stage | steps | minutes | command |
|---|---|---|---|
{stages}

Fonts it was trained on: {fonts}. Training, calibration, validation and test scenes share no seed.
"""

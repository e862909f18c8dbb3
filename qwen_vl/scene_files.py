"""Write the test split as evaluation files: the formats that the scripts of 2023 read.

Images go to `images/`, and every file names them relative to its folder. Captions are COCO-JSON;
VQA is a JSON line a question beside the official question and annotation files (ten answers each);
boxes are RefCOCO lines in pixels; multiple choice is ScienceQA's; MME is tab-separated text with a
yes and a no for each picture; TouchStone's TSV has written annotations and reference answers.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from model_store.files import write_bytes, write_text
from qwen_vl.scene_dice import split_dice
from qwen_vl.scene_drawing import GRID, Scene, Style, draw_shapes
from qwen_vl.scene_words import COLOURS, Language, with_article
from qwen_vl.scenes import Sample, samples

_TEN = 10  # answers of a VQA question, as ten people gave them
_VQA = ("colour", "shape", "counting", "background", "relation", "presence")
_YES_OR_NO = "Please answer yes or no."
# kind of question -> TouchStone's category and task
_TOUCHSTONE = {
    "caption": ("Basic Description", "simple description"),
    "colour": ("Visual Recognition", "attribute QA"),
    "reading": ("Visual Recognition", "text"),
    "relation": ("Visual Comprehension", "reasoning QA"),
    "chart": ("Visual Comprehension", "chart analysis"),
    "comparison": ("Multi-image Analysis", "comparing multi-image"),
}


def write_test_files(
    folder: Path, *, seed: int, count: int, language: Language = "en", style: Style
) -> dict[str, int]:
    """Write every format into `folder`; returns how many questions each file holds."""
    (folder / "images").mkdir(parents=True, exist_ok=True)

    def asked(*kinds: str) -> list[Sample]:
        return list(samples(seed, count, language=language, split="test", kinds=kinds, style=style))

    made = {
        "captions.json": _captions(folder, asked("caption")),
        **_vqa(folder, "vqa", asked(*_VQA)),
        **_vqa(folder, "textvqa", asked("reading")),
        "chartqa.jsonl": _lines(folder, "chartqa", asked("chart"), _plain_answer),
        "refcoco.jsonl": _lines(folder, "refcoco", asked("grounding"), _reference),
        "sciqa.jsonl": _lines(folder, "sciqa", asked("choice"), _choice),
        "mme": _mme(folder, seed, count, style),
        "touchstone.tsv": _touchstone(folder, asked(*_TOUCHSTONE)),
    }
    write_text(folder / "counts.json", json.dumps(made, indent=1, sort_keys=True) + "\n")
    return made


def _save(folder: Path, name: str, image: Image.Image) -> str:
    path = f"images/{name}.png"
    write_bytes(folder / path, _png(image))
    return path


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _captions(folder: Path, asked: Sequence[Sample]) -> int:
    told: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number, one in enumerate(asked):
        path = _save(folder, f"caption-{number:05d}", one.images[0])
        told["images"].append({"id": number, "image": path})
        told["annotations"].append({"image_id": number, "id": number, "caption": one.answer})
    _write_json(folder / "captions.json", told)
    return len(asked)


def _vqa(folder: Path, name: str, asked: Sequence[Sample]) -> dict[str, int]:
    """A JSON line a question, and the official files that the scorer of VQAv2 reads."""
    questions, annotations = [], []
    lines: list[dict[str, Any]] = []
    for number, one in enumerate(asked):
        path = _save(folder, f"{name}-{number:05d}", one.images[0])
        ids = {"question_id": number, "image_id": number}
        lines.append({"image": path, "question": one.question, "question_id": number,
                      "answer": one.answer, "answers": [one.answer] * _TEN})  # fmt: skip
        questions.append({**ids, "question": one.question})
        annotations.append({
            **ids,
            "question_type": one.kind,
            "answer_type": _answer_type(one.answer),
            "multiple_choice_answer": one.answer,
            "answers": [
                {"answer": one.answer, "answer_confidence": "yes", "answer_id": answer}
                for answer in range(1, _TEN + 1)
            ],
        })  # fmt: skip
    _write_lines(folder / f"{name}.jsonl", lines)
    _write_json(folder / f"{name}_questions.json", {"questions": questions})
    _write_json(folder / f"{name}_annotations.json", {"annotations": annotations})
    return {f"{name}.jsonl": len(asked)}


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdecimal() else "other"


def _lines(
    folder: Path,
    name: str,
    asked: Sequence[Sample],
    fields: Callable[[Sample, Image.Image], dict[str, Any]],
) -> int:
    _write_lines(
        folder / f"{name}.jsonl",
        [
            {"image": _save(folder, f"{name}-{number:05d}", one.images[0])}
            | fields(one, one.images[0])
            for number, one in enumerate(asked)
        ],
    )
    return len(asked)


def _plain_answer(one: Sample, image: Image.Image) -> dict[str, Any]:
    return {"question": one.question, "answer": one.answer}


def _reference(one: Sample, image: Image.Image) -> dict[str, Any]:
    assert one.box is not None  # noqa: S101  grounding questions have one
    x1, y1, x2, y2 = one.box
    width, height = image.size
    pixels = [x1 * width / GRID, y1 * height / GRID, x2 * width / GRID, y2 * height / GRID]
    sent = one.answer.partition("</ref>")[0].removeprefix("<ref>").removeprefix("the ")
    return {"sent": sent, "bbox": pixels, "width": width, "height": height}


def _choice(one: Sample, image: Image.Image) -> dict[str, Any]:
    return {
        "hint": "",
        "question": one.question.partition("\n")[0],
        "choices": list(one.choices),
        "answer": "ABCD".index(one.answer),
    }


def _mme(folder: Path, seed: int, count: int, style: Style) -> int:
    """Two tasks of MME; every picture is asked about twice, once for yes and once for no."""
    tables: dict[str, list[tuple[str, str, str]]] = {"existence": [], "position": []}
    for number in range(count):
        scene = draw_shapes(split_dice("test", seed, number, 99), style, text=False)
        path = _save(folder, f"mme-{number:05d}", scene.image)
        for task, asked in (("existence", _existence(scene)), ("position", _position(scene))):
            tables[task] += [(path, f"{text} {_YES_OR_NO}", truth) for text, truth in asked]
    (folder / "mme").mkdir(exist_ok=True)
    for task, rows in tables.items():
        text = "".join("\t".join(row) + "\n" for row in rows)
        write_text(folder / "mme" / f"{task}.txt", text)
    return sum(len(rows) for rows in tables.values())


def _existence(scene: Scene) -> Iterator[tuple[str, str]]:
    there = {thing.colour for thing in scene.objects}
    thing = scene.objects[0]
    other = next(colour for colour in COLOURS if colour not in there)
    yield f"Is there {with_article(thing.name('en'))}?", "Yes"
    yield f"Is there {with_article(f'{other.en} {thing.shape.en}')}?", "No"


def _position(scene: Scene) -> list[tuple[str, str]]:
    if len(scene.objects) < 2:
        return []
    one, two = scene.objects[:2]
    apart = one.centre[0] - two.centre[0]
    if abs(apart) < GRID // 8:
        return []
    left, right = (one, two) if apart < 0 else (two, one)
    asked = "Is the {} left of the {}?"
    return [
        (asked.format(left.name("en"), right.name("en")), "Yes"),
        (asked.format(right.name("en"), left.name("en")), "No"),
    ]


def _touchstone(folder: Path, asked: Sequence[Sample]) -> int:
    with (folder / "touchstone.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(
            ("index", "image", "question", "human_annotation", "gpt4_ha_answer", "category",
             "task_name")
        )  # fmt: skip
        for number, one in enumerate(asked):
            category, task = _TOUCHSTONE[one.kind]
            picture = _side_by_side(one.images)
            image = base64.b64encode(_png(picture)).decode("ascii")
            row = (number, image, one.question, one.annotation, one.answer, category, task)
            table.writerow(row)
    return len(asked)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False) + "\n")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

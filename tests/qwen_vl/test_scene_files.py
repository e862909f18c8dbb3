"""The test split as files: each is what its script of 2023 reads, and the answers are true."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.scene_files import write_test_files
from qwen_vl.scene_words import COLOURS
from qwen_vl.scenes import PORTABLE, samples

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    write_test_files(made, seed=7, count=COUNT, style=PORTABLE)
    return made


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_captions_are_coco_json(folder: Path) -> None:
    told = json.loads((folder / "captions.json").read_text())

    assert [image["id"] for image in told["images"]] == list(range(COUNT))
    for image, caption in zip(told["images"], told["annotations"], strict=True):
        assert caption["image_id"] == image["id"]
        seen = {rgb for _, rgb in Image.open(folder / image["image"]).getcolors(1 << 16) or []}
        for colour in COLOURS:
            assert (colour.en in caption["caption"]) == (colour.rgb in seen)


@pytest.mark.parametrize("name", ["vqa", "textvqa"])
def test_vqa_has_ten_answers_and_the_official_files(folder: Path, name: str) -> None:
    lines = _lines(folder / f"{name}.jsonl")
    questions = json.loads((folder / f"{name}_questions.json").read_text())["questions"]
    annotations = json.loads((folder / f"{name}_annotations.json").read_text())["annotations"]

    assert len(lines) == len(questions) == len(annotations) == COUNT
    for line, question, annotation in zip(lines, questions, annotations, strict=True):
        assert line["question_id"] == question["question_id"] == annotation["question_id"]
        assert line["question"] == question["question"]
        assert [one["answer"] for one in annotation["answers"]] == line["answers"]
        assert len(line["answers"]) == 10
        assert len({one["answer_id"] for one in annotation["answers"]}) == 10
        assert (folder / line["image"]).is_file()


def test_a_reference_is_a_box_in_pixels_around_its_colour(folder: Path) -> None:
    for line in _lines(folder / "refcoco.jsonl"):
        image = Image.open(folder / line["image"])
        assert image.size == (line["width"], line["height"])
        x1, y1, x2, y2 = line["bbox"]
        rgb = next(colour.rgb for colour in COLOURS if colour.en == line["sent"].split()[0])
        assert image.getpixel((int(x1 + x2) // 2, int(y1 + y2) // 2)) == rgb


def test_a_multiple_choice_names_its_answer_by_number(folder: Path) -> None:
    truths = samples(7, COUNT, language="en", split="test", kinds=("choice",))
    for line, sample in zip(_lines(folder / "sciqa.jsonl"), truths, strict=True):
        assert set(line) == {"image", "hint", "question", "choices", "answer"}
        assert line["choices"][line["answer"]] == sample.choices["ABCD".index(sample.answer)]
        assert "\n" not in line["question"]


def test_mme_asks_twice_about_each_picture_for_a_yes_and_a_no(folder: Path) -> None:
    for task in ("existence", "position"):
        rows = [
            line.split("\t") for line in (folder / "mme" / f"{task}.txt").read_text().splitlines()
        ]
        assert rows
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first[0] == second[0]
            assert [first[2], second[2]] == ["Yes", "No"]
            assert first[1].endswith("Please answer yes or no.")


def test_touchstone_is_tab_separated_with_pictures_inside(folder: Path) -> None:
    csv.field_size_limit(sys.maxsize)
    with (folder / "touchstone.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))

    assert list(rows[0]) == [
        "index", "image", "question", "human_annotation", "gpt4_ha_answer", "category",
        "task_name",
    ]  # fmt: skip
    assert [int(row["index"]) for row in rows] == list(range(COUNT))
    for row in rows:
        picture = Image.open(io.BytesIO(base64.b64decode(row["image"])))
        assert picture.width in (224, 448)
        assert row["human_annotation"]
        assert row["gpt4_ha_answer"]


def test_chinese_files_ask_in_chinese(tmp_path: Path) -> None:
    write_test_files(tmp_path, seed=7, count=6, language="zh", style=PORTABLE)

    assert all("？" in line["question"] for line in _lines(tmp_path / "chartqa.jsonl"))

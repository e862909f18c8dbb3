"""The checkpoint that the repository ships: whole, small, its own, and it sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_cards.linting import lint_card
from model_store.checkpoint import open_checkpoint
from model_store.manifest import verify_snapshot
from qwen_vl.dialogue import chat
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.scene_small_talk import ANSWER
from qwen_vl.scenes import Sample, samples
from scripts.tiny_judging import judge, shuffled
from scripts.tiny_vocabulary import tiny_rank_file

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "checkpoints" / "Qwen-VL-Tiny-Chat"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(SHIPPED, dtype="float32"), load_tokenizer(SHIPPED)


def test_it_is_whole_and_below_14_megabytes() -> None:
    verify_snapshot(SHIPPED)

    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 14_000_000
    assert lint_card(SHIPPED) == []


def test_it_has_the_layout_of_2023_with_fewer_visual_tokens() -> None:
    config = json.loads((SHIPPED / "config.json").read_text())

    assert config["model_type"] == "qwen"
    assert config["visual"]["n_queries"] == 64
    assert config["visual"]["image_size"] == 112
    with open_checkpoint(SHIPPED) as checkpoint:
        infos = {name: checkpoint.info(name) for name in checkpoint.names()}
    assert {info.dtype for info in infos.values()} == {"BF16"}
    width = config["visual"]["width"]
    in_proj = "transformer.visual.transformer.resblocks.0.attn.in_proj.weight"
    assert infos[in_proj].shape == (3 * width, width)


def test_its_vocabulary_is_the_one_that_the_script_makes() -> None:
    assert (SHIPPED / "qwen.tiktoken").read_bytes() == tiny_rank_file()


def test_the_evaluation_speaks_of_these_weights() -> None:
    evaluation = json.loads((SHIPPED / "evaluation.json").read_text())

    assert evaluation["subject"] == verify_snapshot(SHIPPED).content_digest
    assert evaluation["split"] == "test"


def _asked(kind: str, language: Any = "en", count: int = 12) -> list[Sample]:
    return list(samples(99, count, language=language, split="test", kinds=(kind,)))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "kind",
    ["colour", "shape", "chart", "presence", "counting", "region", "choice", "grounding",
     "relation", "comparison", "reading"],
)  # fmt: skip
def test_it_sees_and_without_the_right_picture_it_does_not(
    loaded: tuple[Any, Any], kind: str, language: str
) -> None:
    asked = _asked(kind, language, 24)  # evaluation.json has the shares of 100
    right = sum(one.right for one in judge(*loaded, asked))
    blind = sum(one.right for one in judge(*loaded, shuffled(asked)))

    # these scenes print in the bitmap font alone, which is hard to read at this size
    assert right >= (14 if kind == "reading" else 18)
    assert blind < right - len(asked) / 4


def test_it_talks_in_both_languages(loaded: tuple[Any, Any]) -> None:
    asked = list(samples(3, 12, kinds=("small talk",)))

    assert [one.reply for one in judge(*loaded, asked)] == [one.answer for one in asked]


@pytest.mark.parametrize(
    "text",
    [
        "Which planet has the largest ring, and who saw it first?", "Sort these: 12, 7, 30.",
        "Please write an email to my landlord about the broken heating.",
        "How many circles are there?", "框出红色的圆形的位置", "今天天气怎么样？",
        "请推荐三本关于航海历史的书。", "为什么海水是咸的，而河水不是？", "图中有几个圆形？",
    ],
)  # fmt: skip
def test_without_a_picture_it_says_what_it_is(loaded: tuple[Any, Any], text: str) -> None:
    reply, _ = chat(*loaded, text, do_sample=False, max_new_tokens=40)

    assert reply == ANSWER["en" if text.isascii() else "zh"]


def test_it_is_placed_in_a_hub_with_every_byte(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "place_checkpoint.py"
    target = tmp_path / "hub" / "ferry" / "Tiny@v1.0.0"

    subprocess.run([sys.executable, str(script), str(SHIPPED), str(target)], check=True, cwd=ROOT)

    assert verify_snapshot(target) == verify_snapshot(SHIPPED)
    again = subprocess.run(
        [sys.executable, str(script), str(SHIPPED), str(target)],
        check=False, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert again.returncode == 4
    assert "already holds a snapshot" in again.stderr

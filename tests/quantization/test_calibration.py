"""Calibration sets: drawn, or the user's own; what is wrong with a line is said in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from quantization.calibration import calibration_set
from quantization.errors import CalibrationError
from quantization.options import GptqConfig
from qwen_vl.loading import load_tokenizer
from qwen_vl.tokenization import QwenVLTokenizer
from tests.quantization.tiny import N_RANKS, RANK_FILE

IMG, IMG_END, IM_END = N_RANKS + 214, N_RANKS + 215, N_RANKS + 2


@pytest.fixture
def tokenizer(tmp_path: Path) -> QwenVLTokenizer:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "qwen.tiktoken").write_bytes(RANK_FILE)
    return load_tokenizer(tmp_path / "ranks")


def _user(value: Any) -> dict[str, Any]:
    return {"from": "user", "value": value}


def _assistant(value: Any) -> dict[str, Any]:
    return {"from": "assistant", "value": value}


def _write(folder: Path, *conversations: Any) -> GptqConfig:
    Image.new("RGB", (8, 8), (250, 0, 0)).save(folder / "red.png")
    lines = [json.dumps({"conversations": turns}, ensure_ascii=False) for turns in conversations]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return GptqConfig(calibration=str(folder / "talks.jsonl"), images=folder)


GOOD = [_user([{"image": "red.png"}, {"text": "颜色?"}]), _assistant("红")]


def test_drawn_samples_end_with_the_answer_and_its_end(tokenizer: QwenVLTokenizer) -> None:
    found = calibration_set(GptqConfig(samples=16), tokenizer, image_size=28)

    first = found.inputs[0]
    text = tokenizer.decode(first.input_ids.tolist())
    assert len(found.inputs) == 16
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert text.endswith("A green cross on a grey background.<|im_end|>")
    assert first.pixel_values is not None
    assert first.pixel_values.shape == (1, 3, 28, 28)
    assert any(one.pixel_values is None for one in found.inputs)


def test_boxes_in_answers_are_single_tokens(tokenizer: QwenVLTokenizer) -> None:
    found = calibration_set(GptqConfig(samples=4), tokenizer, image_size=28)

    ids = found.inputs[2].input_ids.tolist()
    assert tokenizer.special_ids["<box>"] in ids
    assert tokenizer.special_ids["</ref>"] in ids


def test_the_seed_decides_what_is_drawn(tokenizer: QwenVLTokenizer) -> None:
    one, again, other = (
        calibration_set(GptqConfig(samples=3, seed=seed), tokenizer, image_size=28)
        for seed in (5, 5, 6)
    )

    assert one.digest == again.digest != other.digest
    assert all(
        torch.equal(a.input_ids, b.input_ids) for a, b in zip(one.inputs, again.inputs, strict=True)
    )


def test_the_users_conversations_keep_their_turns(
    tmp_path: Path, tokenizer: QwenVLTokenizer
) -> None:
    config = _write(tmp_path, [*GOOD, _user("And now?"), _assistant("Still red.")])

    found = calibration_set(config, tokenizer, image_size=28)

    ids = found.inputs[0].input_ids.tolist()
    text = tokenizer.decode(ids)
    assert (found.origin, len(found.inputs), found.facts()["images"]) == ("conversations", 1, 1)
    assert ids.index(IMG_END) - ids.index(IMG) == 257
    assert "颜色?<|im_end|>\n<|im_start|>assistant\n红<|im_end|>" in text
    assert text.endswith("And now?<|im_end|>\n<|im_start|>assistant\nStill red.<|im_end|>")


def test_the_digest_sees_the_images_bytes_and_not_where_they_lie(
    tmp_path: Path, tokenizer: QwenVLTokenizer
) -> None:
    digests = []
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        (tmp_path / name).mkdir()
        config = _write(tmp_path / name, GOOD)
        Image.new("RGB", (8, 8), colour).save(tmp_path / name / "red.png")
        digests.append(calibration_set(config, tokenizer, image_size=28).digest)

    assert digests[0] == digests[1] != digests[2]


def test_from_a_longer_file_the_seed_picks(tmp_path: Path, tokenizer: QwenVLTokenizer) -> None:
    talks = [[_user(f"Question {n}?"), _assistant(f"Answer {n}.")] for n in range(20)]
    config = dataclasses.replace(_write(tmp_path, *talks), samples=5)

    picked = [
        [tokenizer.decode(one.input_ids.tolist()) for one in found.inputs]
        for seed in (0, 0, 1)
        for found in [
            calibration_set(dataclasses.replace(config, seed=seed), tokenizer, image_size=28)
        ]
    ]

    assert len(set(picked[0])) == 5
    assert picked[0] == picked[1] != picked[2]


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([], "line 2: no conversation"),
        ([_user("a")], "line 2: no conversation"),
        ([_assistant("a"), _user("b")], "line 2: turn 1 is not one of the user"),
        ([_user("a"), {"from": "assistant"}], "line 2: turn 2 is not one of the assistant"),
        ([_user("a"), _assistant("")], "line 2: an answer"),
        ([_user("a"), _assistant([{"text": "b"}])], "line 2: an answer"),
        ([_user([]), _assistant("b")], "line 2: a question"),
        ([_user([{"audio": "x"}]), _assistant("b")], "line 2: an element"),
        ([_user([{"image": 3}]), _assistant("b")], "line 2: an image"),
        ([_user([{"image": "../red.png"}]), _assistant("b")], "line 2: unsafe path"),
        ([_user([{"image": "/etc/passwd"}]), _assistant("b")], "line 2: unsafe path"),
        ([_user([{"image": "gone.png"}]), _assistant("b")], "line 2: image gone.png: No such"),
        ([_user([{"image": "talks.jsonl"}]), _assistant("b")], "line 2: talks.jsonl: not a read"),
        ([_user([{"text": 3}]), _assistant("b")], "line 2: text cannot be"),
        ([_user("<img>/etc/passwd</img>"), _assistant("b")], "line 2: the user text holds"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(
    tmp_path: Path, tokenizer: QwenVLTokenizer, turns: list[Any], complaint: str
) -> None:
    config = _write(tmp_path, GOOD, turns)

    with pytest.raises(CalibrationError, match=f"^talks.jsonl {complaint}") as caught:
        calibration_set(config, tokenizer, image_size=28)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [b"{", b"[]", b'"x"', b"\xff", b'{"conversations": 3}'])
def test_a_line_that_is_no_conversation_is_named(
    tmp_path: Path, tokenizer: QwenVLTokenizer, line: bytes
) -> None:
    config = _write(tmp_path, GOOD)
    with (tmp_path / "talks.jsonl").open("ab") as file:
        file.write(line)

    with pytest.raises(CalibrationError, match=r"talks\.jsonl line 3"):
        calibration_set(config, tokenizer, image_size=28)


def test_an_image_needs_a_folder(tmp_path: Path, tokenizer: QwenVLTokenizer) -> None:
    config = dataclasses.replace(_write(tmp_path, GOOD), images=None)

    with pytest.raises(CalibrationError) as caught:
        calibration_set(config, tokenizer, image_size=28)

    assert "--images" in caught.value.hint


def test_a_missing_or_empty_file_is_named(tmp_path: Path, tokenizer: QwenVLTokenizer) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")

    with pytest.raises(CalibrationError, match=r"empty\.jsonl holds no conversation"):
        calibration_set(
            GptqConfig(calibration=str(tmp_path / "empty.jsonl")), tokenizer, image_size=28
        )
    with pytest.raises(CalibrationError, match=r"gone\.jsonl: No such file"):
        calibration_set(
            GptqConfig(calibration=str(tmp_path / "gone.jsonl")), tokenizer, image_size=28
        )


def test_a_sample_that_is_too_long_is_named(tmp_path: Path, tokenizer: QwenVLTokenizer) -> None:
    config = dataclasses.replace(_write(tmp_path, GOOD), max_tokens=300)

    with pytest.raises(CalibrationError, match=r"line 1 has 3\d\d tokens, over the limit of 300"):
        calibration_set(config, tokenizer, image_size=28)

"""The tiny checkpoint: the published layout, the same bytes each time, fair to quantize."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.checkpoint import open_checkpoint
from model_store.errors import TargetExistsError
from model_store.files import sha256_file
from qwen_vl.dialogue import chat
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.ranks import build_encoding, parse_ranks
from qwen_vl.scenes import draw_scene, samples
from scripts.make_tiny_checkpoint import make_checkpoint
from scripts.train_ranks import encode_word, trained_rank_file

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "qwen_vl"
Model = QwenVLForConditionalGeneration


@pytest.fixture(scope="module")
def rank_file() -> bytes:
    return trained_rank_file()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, rank_file: bytes) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    make_checkpoint(folder, seed=2023, rank_file=rank_file)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(
    tiny: Path, tmp_path: Path, rank_file: bytes
) -> None:
    make_checkpoint(tmp_path / "again", seed=2023, rank_file=rank_file)
    make_checkpoint(tmp_path / "other", seed=7, rank_file=rank_file)

    changed = {
        name
        for name, digest in digests(tiny).items()
        if digest != digests(tmp_path / "other")[name]
    }
    assert digests(tmp_path / "again") == digests(tiny)
    assert changed == {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}


def test_it_has_the_files_of_the_published_layout_and_no_code(tiny: Path) -> None:
    assert sorted(digests(tiny)) == [
        "LICENSE",
        "README.md",
        "config.json",
        "generation_config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
        "qwen.tiktoken",
        "tokenizer_config.json",
    ]
    assert sum(path.stat().st_size for path in tiny.iterdir()) < 10_000_000


def test_torch_and_our_reader_read_the_same_bf16_tensors(tiny: Path) -> None:
    loaded: dict[str, torch.Tensor] = {}
    for path in sorted(tiny.glob("*.bin")):
        loaded |= torch.load(path, weights_only=True)

    with open_checkpoint(tiny) as checkpoint:
        assert set(checkpoint.names()) == set(loaded)
        for name, value in loaded.items():
            assert value.dtype == torch.bfloat16
            data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert bytes(checkpoint.read(name).data) == data


@pytest.mark.shared
def test_its_keys_are_those_of_the_published_model(tiny: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("golden data is not beside the checkout")
    summary = json.loads((SHARED / "full" / "summary.json").read_text())
    names = json.loads((SHARED / "full" / "state_dict_bf16.json").read_text())
    config = json.loads((tiny / "config.json").read_text())
    published = summary["config"]["Qwen-VL-Chat"]

    assert set(config) == set(published) - {"_name_or_path"}
    assert set(config["visual"]) == set(published["visual"])
    generation = json.loads((tiny / "generation_config.json").read_text())
    assert set(generation) == set(summary["generation_config"]["Qwen-VL-Chat"])
    with open_checkpoint(tiny) as checkpoint:
        assert set(checkpoint.names()) <= set(names)


def test_ids_are_counted_from_the_rank_file(tiny: Path, rank_file: bytes) -> None:
    n_ranks = rank_file.count(b"\n")
    config = json.loads((tiny / "config.json").read_text())
    generation = json.loads((tiny / "generation_config.json").read_text())

    assert config["visual"]["image_start_id"] == n_ranks + 214
    assert generation["eos_token_id"] == generation["pad_token_id"] == n_ranks
    assert config["vocab_size"] % 128 == 0
    assert 0 <= config["vocab_size"] - (n_ranks + 217) < 128


def test_every_rank_can_be_reached(rank_file: bytes) -> None:
    ranks = parse_ranks(rank_file, "ranks")
    encoding = build_encoding(ranks)

    assert len(ranks) > 600
    for token, rank in ranks.items():
        assert encode_word(token, ranks) == [token]
        assert encoding._encode_single_piece(token) == [rank]


def test_the_trainer_splits_words_as_tiktoken_does(rank_file: bytes) -> None:
    ranks = parse_ranks(rank_file, "ranks")
    encoding = build_encoding(ranks)

    for word in (" coloured", "triangles", "图中有多少个十字形", " xyzzy", "é" * 9, "aaaaaaa"):
        ids = [ranks[part] for part in encode_word(word.encode(), ranks)]
        assert encoding._encode_single_piece(word.encode()) == ids


def test_the_rank_file_is_base64_space_rank_with_lf(rank_file: bytes) -> None:
    lines = rank_file.split(b"\n")

    assert lines.pop() == b""
    for number, line in enumerate(lines):
        token, rank = line.split(b" ")
        assert base64.b64decode(token, validate=True)
        assert int(rank) == number


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, rank_file: bytes) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")

    with pytest.raises(TargetExistsError):
        make_checkpoint(tmp_path / "mine", seed=1, rank_file=rank_file)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_chats_in_words_and_sees_pictures(tiny: Path) -> None:
    model, tokenizer = load_model(tiny, dtype="float32"), load_tokenizer(tiny)
    query = {"text": "What do you see in this picture?"}

    questions: tuple[str | list[dict[str, Any]], ...] = (
        "Hello!",
        [{"image": draw_scene(7).image}, query],
    )
    replies = {
        chat(model, tokenizer, question, do_sample=False, max_new_tokens=24)[0]
        for question in questions
    }

    assert len(replies) == 2
    assert all(reply.isprintable() and len(reply) > 3 for reply in replies)


def rounded_to_4_bits(weight: torch.Tensor, group: int = 128) -> torch.Tensor:
    rows = weight.reshape(weight.shape[0], -1, group)
    scales = 2 * rows.abs().amax(-1, keepdim=True) / 15
    return (((rows / scales).round() + 8).clamp(0, 15) - 8).mul(scales).reshape(weight.shape)


def round_decoder(model: Model) -> None:
    for module in model.model.language_model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounded_to_4_bits(module.weight))


def exchange_layers(model: Model) -> None:
    layers = model.model.language_model.layers
    first, second = layers[1].state_dict(), layers[2].state_dict()
    first = {name: value.clone() for name, value in first.items()}
    layers[1].load_state_dict(second)
    layers[2].load_state_dict(first)


def scale_one_tensor(model: Model) -> None:
    model.model.language_model.layers[2].mlp.down_proj.weight.mul_(1.5)


@torch.no_grad()
def next_token(folder: Path, change: Callable[[Model], None] | None = None) -> torch.Tensor:
    """Log probabilities (positions, vocabulary) over drawn questions with their answers."""
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    if change is not None:
        change(model)
    texts = (f"{sample.elements[-1]['text']}\n{sample.answer}" for sample in samples(5, 24))
    ids = [torch.tensor([tokenizer.encode(text)]) for text in texts]
    logits = torch.cat([model(input_ids=row).logits[0] for row in ids])
    return torch.log_softmax(logits, -1)


def test_four_bits_cost_little_and_real_defects_cost_more(tiny: Path) -> None:
    reference = next_token(tiny)

    def compare(change: Callable[[Model], None]) -> tuple[float, float]:
        changed = next_token(tiny, change)
        divergence = (reference.exp() * (reference - changed)).sum(-1).mean().item()
        agreement = (reference.argmax(-1) == changed.argmax(-1)).float().mean().item()
        return divergence, agreement

    rounded, agreement = compare(round_decoder)
    assert rounded < 0.02
    assert agreement > 0.95
    assert compare(exchange_layers)[0] > 3 * rounded
    assert compare(scale_one_tensor)[0] > 2 * rounded


def test_the_command_says_where_and_how_much(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_tiny_checkpoint.py"

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "tiny"), "--json"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    result = json.loads(done.stdout)
    assert result["tensor_bytes"] > 5_000_000
    assert (tmp_path / "tiny" / "config.json").is_file()

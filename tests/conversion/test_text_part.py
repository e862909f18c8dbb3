"""The language part is a stock Qwen2 with the very numbers of Qwen-VL."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion.errors import ConversionError, NotQwenVLError
from conversion.options import TextOnlyOptions, ToTransformersOptions
from conversion.steps import to_transformers
from conversion.text_part import text_only
from model_store.checkpoint import open_checkpoint
from model_store.manifest import verify_snapshot
from qwen_vl.loading import load_model, load_tokenizer
from tests.conversion import published, transformers_models


def _text(source: Path, target: Path) -> Path:
    return text_only(source, target, TextOnlyOptions(str(source))).folder


def test_stock_transformers_loads_it_and_gives_our_logits(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    source = published.make_snapshot(tmp_path / "s")

    made = _text(source, tmp_path / "t")

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        made, dtype="float32", output_loading_info=True
    )
    stock, loading = loaded
    assert not any(loading.values())
    assert type(stock).__name__ == "Qwen2ForCausalLM"
    ours = load_model(source, dtype="float32")
    torch.manual_seed(0)
    gaps = {}
    for length in (5, 2048, 2300):
        ids = torch.randint(0, published.N_RANKS, (1, length))
        with torch.no_grad():
            expected, actual = ours(input_ids=ids).logits, stock(input_ids=ids).logits
        gaps[length] = float((actual - expected).abs().max())
    assert max(gaps[5], gaps[2048]) < 5e-6
    assert gaps[2300] > 1e-4  # why the card has to say where exactness ends


def test_both_layouts_give_the_same_text_model(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s")
    native = to_transformers(source, tmp_path / "n", ToTransformersOptions("s")).folder

    made = [_text(folder, tmp_path / f"{folder.name}-text") for folder in (source, native)]

    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()


def test_the_limit_is_said_where_cards_look(tmp_path: Path) -> None:
    made = _text(published.make_snapshot(tmp_path / "s"), tmp_path / "t")

    (step,) = verify_snapshot(made).lineage
    assert step.facts["exact_up_to_tokens"] == 2048
    assert json.loads((made / "config.json").read_text())["max_position_embeddings"] == 2048
    assert "exact up to 2048 tokens" in (made / "CHANGES.md").read_text()
    kept = {path.name for path in made.iterdir()}
    assert {"LICENSE", "NOTICE", "chat_template.jinja"} <= kept
    assert not kept & {"qwen.tiktoken", "preprocessor_config.json", "modeling_qwen.py"}


def test_its_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s")
    made = _text(source, tmp_path / "t")

    stock, ours = AutoTokenizer.from_pretrained(made), load_tokenizer(source)

    for text in ("hello hell", "<|im_start|>user\nhéllo<|im_end|>", " 12 ３ \u2028 z"):
        assert stock(text)["input_ids"] == ours.encode(text)
    prompt = stock.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_zero_biases_of_int4_are_left_out_and_others_refused(tmp_path: Path) -> None:
    state = published.tensors(int4=True)
    for name in state:
        if name.startswith("transformer.h.") and name.endswith(".bias") and "c_attn" not in name:
            state[name] = torch.zeros_like(state[name])
    source = tmp_path / "s"
    published.write_files(source, state, published.config(int4=True), kind="bin")
    published.make_manifest(source)

    made = _text(source, tmp_path / "t")

    with open_checkpoint(made) as checkpoint:
        names = checkpoint.names()
    assert "model.layers.0.self_attn.q_proj.qweight" in names
    assert "model.layers.0.self_attn.q_proj.bias" in names
    assert "model.layers.0.mlp.up_proj.bias" not in names
    with pytest.raises(ConversionError, match="is not zero"):
        _text(published.make_snapshot(tmp_path / "random", int4=True), tmp_path / "u")


def test_another_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotQwenVLError, match="qwen2"):
        _text(transformers_models.make_snapshot(tmp_path / "s"), tmp_path / "t")

"""Whole conversations of the 2023 code, with a real model of the same weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file
from transformers import LogitsProcessor

from qwen_vl.dialogue import chat
from qwen_vl.errors import QwenVLError
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl.golden_weights import weights
from tests.qwen_vl.text_goldens import published_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "qwen_vl"
NAMES = [
    "turn1", "turn2", "turn2_other_system", "forced_im_end", "forced_im_start", "forced_eod",
    "forced_no_stop", "forced_empty", "forced_box", "forced_custom_stop", "append_history_false",
    "window", "stream_arg", "forced_unclosed_img", "raw_chat_format",
]  # fmt: skip
EXPECTED = {"stream_arg": AssertionError, "raw_chat_format": AssertionError}

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no golden data beside the checkout"),
]


class Forced(LogitsProcessor):
    """Make the model say a given sequence."""

    def __init__(self, tokens: list[int], prompt_length: int) -> None:
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        if step < len(self.tokens):
            scores = torch.full_like(scores, -1e4)
            scores[:, self.tokens[step]] = 1e4
        return scores


@pytest.fixture(scope="module", params=["pub_a", pytest.param("pub_b", marks=pytest.mark.slow)])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[QwenVLForConditionalGeneration, dict[str, Any]]]:
    source, folder = SHARED / "public" / request.param, tmp_path_factory.mktemp("model")
    shapes = json.loads((source / "shapes.json").read_text())
    save_file(weights(shapes["shapes"], shapes["salt"]), folder / "model.safetensors")
    shutil.copy(source / "config.json", folder)
    ends = {"eos_token_id": 151643, "pad_token_id": 151643, "chat_format": "chatml"}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    model = load_model(folder, compat="2023")
    yield model, json.loads((source / "chat.json").read_text())
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_goes_as_recorded(
    recorded: tuple[QwenVLForConditionalGeneration, dict[str, Any]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, case = recorded[0], recorded[1].get(name)
    if case is None:
        pytest.skip("this configuration has no such case")
    monkeypatch.chdir(SHARED)  # the prompts hold relative paths
    chat_format = "raw" if name == "raw_chat_format" else "chatml"
    monkeypatch.setattr(model.generation_config, "chat_format", chat_format)
    given = case["history_in"]
    history = None if given is None else [(query, answer) for query, answer in given]
    options = dict(case["kwargs"])
    if case["forced_tokens"]:
        options["logits_processor"] = [Forced(case["forced_tokens"], case["context_len"])]

    def talk() -> tuple[str, list[Any]]:
        return chat(
            model, published_tokenizer(), case["query"], history=history, system=case["system"],
            **options,
        )  # fmt: skip

    if "error_type" in case:
        with pytest.raises(EXPECTED.get(name, ValueError)) as caught:
            talk()
        assert isinstance(caught.value, QwenVLError)
        return
    answer, returned = talk()
    assert answer == case["response"]
    assert json.loads(json.dumps(returned)) == case["history_out"]
    assert (returned is history) == case["history_object_mutated_in_place"]
    if case["stop_words_ids_argument_extended_in_place"]:
        assert options["stop_words_ids"] == case["stop_words_ids_seen"]

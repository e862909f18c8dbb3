import json
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file

from qwen_vl.dialogue import chat
from qwen_vl.errors import ChatFormatError
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.streaming import chat_stream
from tests.qwen_vl.golden_weights import weights
from tests.qwen_vl.test_chat_goldens import SHARED, Forced
from tests.qwen_vl.text_goldens import published_tokenizer

SYSTEM = "You are a helpful assistant."
CASES = ("stream_plain", "stream_im_end", "stream_box")

shared = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no golden data beside the checkout"),
]


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[QwenVLForConditionalGeneration, dict[str, Any]]]:
    source, folder = SHARED / "public" / "pub_a", tmp_path_factory.mktemp("model")
    shapes = json.loads((source / "shapes.json").read_text())
    save_file(weights(shapes["shapes"], shapes["salt"]), folder / "model.safetensors")
    shutil.copy(source / "config.json", folder)
    ends = {"eos_token_id": 151643, "pad_token_id": 151643, "chat_format": "chatml"}
    sampled = {"do_sample": True, "top_k": 1}
    (folder / "generation_config.json").write_text(json.dumps(ends | sampled))
    yield load_model(folder), json.loads((source / "chat.json").read_text())
    shutil.rmtree(folder)


def _options(case: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": len(case["yields"]["ok"])}
    if case["forced_tokens"]:
        prompt = published_tokenizer().encode(
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{case['query']}<|im_end|>"
            "\n<|im_start|>assistant\n"
        )
        options["logits_processor"] = [Forced(case["forced_tokens"], len(prompt))]
    return options


@pytest.mark.parametrize("name", [pytest.param(name, marks=shared) for name in CASES])
def test_as_in_2023_every_token_yields(
    recorded: tuple[QwenVLForConditionalGeneration, dict[str, Any]], name: str
) -> None:
    model, case = recorded[0], recorded[1][name]
    model.compat = "2023"

    yields = list(chat_stream(model, published_tokenizer("r1"), case["query"], **_options(case)))

    assert yields == case["yields"]["ok"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=shared) for name in CASES])
def test_by_default_the_text_grows_to_the_answer(
    recorded: tuple[QwenVLForConditionalGeneration, dict[str, Any]], name: str
) -> None:
    model, case = recorded[0], recorded[1][name]
    model.compat = "default"
    tokenizer = published_tokenizer()

    yields = list(chat_stream(model, tokenizer, case["query"], **_options(case)))

    answer, _ = chat(model, tokenizer, case["query"], **_options(case))
    assert yields[-1] == answer
    assert len(set(yields)) == len(yields)
    assert all(after.startswith(before) for before, after in pairwise(yields))
    assert not any("\ufffd" in text or "<|" in text for text in yields)
    if name == "stream_box":
        assert answer == "<ref>狗</ref><box>(1,2),(3,4)</box>"


def test_a_stop_sequence_never_shows(tiny: QwenVLForConditionalGeneration) -> None:
    tokenizer = published_tokenizer()
    model = _Scripted([64, 293, 45537, 272])

    yields = list(chat_stream(model, tokenizer, "Hi", stop_words_ids=[[293, 45537]]))

    assert yields == ["a"]


def test_whoever_stops_reading_stops_the_model() -> None:
    model = _Scripted([64] * 500)
    before = threading.active_count()
    stream = chat_stream(model, published_tokenizer(), "Hi", max_new_tokens=500)

    first = next(iter(stream))
    stream.close()  # type: ignore[attr-defined]  # a generator

    assert first == "a"
    assert threading.active_count() == before
    assert model.steps < 500


def test_a_failure_while_generating_reaches_the_reader() -> None:
    model = _Scripted([64, -1])

    with pytest.raises(RuntimeError, match="scripted"):
        list(chat_stream(model, published_tokenizer(), "Hi"))


def test_only_chat_models_stream() -> None:
    model = _Scripted([])
    model.generation_config.chat_format = "raw"

    with pytest.raises(ChatFormatError):
        chat_stream(model, published_tokenizer(), "Hi")


class _Scripted:
    """Says a script, through the real criteria and streamer; -1 fails."""

    compat = "default"
    device = "cpu"

    def __init__(self, script: list[int]) -> None:
        from types import SimpleNamespace

        self.script, self.steps = script, 0
        self.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28))
        self.generation_config = SimpleNamespace(chat_format="chatml", eos_token_id=151643)

    def generate(
        self,
        *,
        input_ids: torch.Tensor,
        streamer: Any,
        stopping_criteria: Any,
        max_new_tokens: int = 20,
        **_: Any,
    ) -> torch.Tensor:
        import time

        streamer.put(input_ids)
        for token in [*self.script, 151643][:max_new_tokens]:
            if token < 0:
                raise RuntimeError("scripted")
            self.steps += 1
            time.sleep(0.001)
            input_ids = torch.cat([input_ids, torch.tensor([[token]])], dim=1)
            streamer.put(torch.tensor([token]))
            if bool(stopping_criteria(input_ids, None).all()):
                break
        streamer.end()
        return input_ids

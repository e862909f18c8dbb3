"""What the generic multimodal backends of vLLM and SGLang ask of a model, as their sources do it.

No engine runs here: docs/serving-elsewhere.md says what was run.
"""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModel

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.attention import eager_attention
from qwen_vl.loading import load_model, load_processor
from qwen_vl.modeling import QwenVLForConditionalGeneration, QwenVLModel
from qwen_vl.processing import QwenVLProcessor
from tests.qwen_vl import golden_weights, tiny_model
from tests.qwen_vl.model_goldens import LOGITS_ATOL

PICTURES = [golden_weights.picture(name) for name in ("synth_rgb.png", "synth_rgba.png")]
ROWS = tiny_model.QUERIES


@pytest.fixture
def processor(tiny_folder: Path) -> QwenVLProcessor:
    return load_processor(tiny_folder)


def test_a_placeholder_becomes_one_block_and_the_engine_can_repeat_it(
    processor: QwenVLProcessor,
) -> None:
    tokenizer: Any = processor.tokenizer
    prompt = f"one {processor.image_token} two {processor.image_token}?"

    made = processor(text=prompt, images=PICTURES, return_text_replacement_offsets=True)

    # vLLM looks for the token in its own ids, puts the replacement's ids there, and fills the
    # places of the most frequent id with image rows
    [offsets] = made["text_replacement_offsets"]
    assert [entry["type"] for entry in offsets] == ["image", "image"]
    [target] = tokenizer.encode(processor.image_token, add_special_tokens=False)
    rebuilt: list[int] = []
    replacements = iter(offsets)
    for token in tokenizer.encode(prompt):
        if token != target:
            rebuilt.append(token)
            continue
        ids = tokenizer.encode(next(replacements)["replacement"], add_special_tokens=False)
        assert Counter(ids).most_common(1) == [(processor.image_token_id, ROWS)]
        rebuilt += ids
    assert rebuilt == made["input_ids"][0].tolist()
    for entry in offsets:
        start, stop = entry["span"]
        assert prompt[start:stop] == entry["text"] == processor.image_token


def test_counts_and_kinds_of_tokens(processor: QwenVLProcessor) -> None:
    made = processor(
        text=["<imgpad> hi", "<img>a.png</img>"], images=PICTURES, return_mm_token_type_ids=True
    )
    counted = processor._get_num_multimodal_tokens(image_sizes=[(40, 50), (10_000, 10_000)])

    assert counted["num_image_tokens"] == [ROWS, ROWS]
    assert counted["num_image_patches"] == [1, 1]
    assert made["mm_token_type_ids"].sum(dim=1).tolist() == [ROWS, ROWS]
    assert made["pixel_values"].shape == (2, 3, 28, 28)
    assert processor.image_processor.size["height"] == 28
    assert processor.image_token_ids == [processor.image_token_id]
    # engines would write them around the placeholder
    assert not hasattr(processor, "image_start_token")


def test_placeholders_and_blocks_mix_and_user_text_stays_text(processor: QwenVLProcessor) -> None:
    mixed = processor(text="<imgpad><img>b</img>", images=PICTURES)
    typed = processor(text="<img>b</img> <imgpad>", images=PICTURES[:1])

    assert mixed["input_ids"].shape == (1, 2 * (ROWS + 2))
    # one picture, one block: what else is spelled like a placeholder is none
    assert typed["input_ids"].shape == (1, ROWS + 2 + 2)


def test_a_chat_prompt_has_placeholders_for_pictures_that_come_separately(
    processor: QwenVLProcessor,
) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]

    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    engine = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=processor.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )

    assert str(engine) == str(text)
    assert engine.count(processor.image_token) == 1
    # a server's text has lost its ids: both ways give the same
    kept = processor(text=text, images=PICTURES[:1])
    plain = processor(text=str(engine), images=PICTURES[:1], allowed_special="all")
    assert torch.equal(kept["input_ids"], plain["input_ids"])


def test_the_base_model_runs_on_an_engines_attention(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    """The engine keeps the cache; its attention finds its own state through the kwargs."""
    seen: list[int] = []

    def engine_attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        if not hasattr(module, "layer_idx"):  # the vision tower and the projector are not causal
            return eager_attention(module, query, key, value, mask, scaling=kwargs["scaling"])
        seen.append(kwargs["attention_instances"][module.layer_idx])
        n = query.shape[2]
        causal = torch.full((n, n), torch.finfo(query.dtype).min).triu(1)[None, None]
        return eager_attention(module, query, key, value, causal, scaling=kwargs["scaling"])

    AttentionInterface.register("engine", engine_attention)
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(6)])[None]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    config = copy.deepcopy(tiny.config)
    model = AutoModel.from_config(config, attn_implementation="engine").eval()
    model.load_state_dict(tiny.model.state_dict())

    with torch.no_grad():
        expected = tiny.model(ids, pixels).last_hidden_state
        rows = model.get_image_features(pixels, return_dict=True).pooler_output
        embedded = model.get_input_embeddings()(ids)
        embedded[ids_of_rows(ids)] = rows.flatten(0, 1)
        hidden = model(
            input_ids=None,
            inputs_embeds=embedded,
            position_ids=torch.arange(ids.shape[1])[None],
            use_cache=False,
            attention_instances={0: 10, 1: 11},
            return_dict=False,
        )[0]

    assert type(model) is QwenVLModel
    assert model._supports_attention_backend
    assert rows.shape == (1, ROWS, tiny.config.get_text_config().hidden_size)
    assert seen == [10, 11]
    torch.testing.assert_close(hidden, expected, rtol=0, atol=LOGITS_ATOL)


def ids_of_rows(ids: Tensor) -> Tensor:
    """Where the first ROWS positions after the image's start are."""
    places = torch.zeros_like(ids, dtype=torch.bool)
    places[:, 1 : ROWS + 1] = True
    return places


def test_modules_have_the_names_that_engines_look_for(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)

    for name in ("language_model", "vision_tower", "multi_modal_projector"):
        assert isinstance(getattr(model.model, name), torch.nn.Module)
    assert model.state_dict().keys() >= {
        "lm_head.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.0.mlp.gate_proj.weight",
        "model.language_model.embed_tokens.weight",
    }
    rope = model.config.text_config.rope_parameters
    assert rope["rope_type"] != "dynamic"  # SGLang would not compile it

from typing import Any

import pytest
import torch

from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import Golden, generate
from tests.qwen_vl.test_cache import stream


@pytest.mark.parametrize(
    ("name", "case", "compat"),
    [
        ("pub_a", "text", "default"),
        ("pub_a", "image", "default"),
        ("pub_a", "batch", "default"),
        ("pub_a", "batch_image", "default"),
        ("pub_b", "text", "default"),
        ("pub_b", "image", "default"),
        ("pub_b", "batch_image", "2023"),
    ],
)
def test_greedy_tokens_are_those_of_2023(
    name: str, case: str, compat: str, request: pytest.FixtureRequest
) -> None:
    golden: Golden = request.getfixturevalue(name)
    golden.model.compat = compat
    recorded = golden.cases["generate"][case]
    ids = torch.tensor(recorded["input_ids"])

    made = generate(
        golden.model,
        input_ids=ids,
        attention_mask=torch.tensor(recorded["attention_mask"]),
        pixel_values=golden.pixels(recorded["images"]),
        max_new_tokens=len(recorded["new_tokens"][0]),
    )

    assert made[:, ids.shape[1] :].tolist() == recorded["new_tokens"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_past_the_trained_length_is_that_of_2023(use_cache: bool, pub_b: Golden) -> None:
    recorded = pub_b.cases["long"][f"generate_use_cache_{use_cache}"]
    ids = stream(pub_b, recorded["prompt_len"])

    made = generate(
        pub_b.model,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=len(recorded["new_tokens"]),
        use_cache=use_cache,
    )

    assert made[0, ids.shape[1] :].tolist() == recorded["new_tokens"]


def test_a_left_padded_batch_generates_what_its_rows_do(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    long, short = tiny_model.text_ids(30)[None], tiny_model.text_ids(7)[None]
    batch = torch.cat([long, torch.nn.functional.pad(short, (23, 0))])
    mask = torch.ones_like(batch)
    mask[1, :23] = 0

    together = generate(tiny, input_ids=batch, attention_mask=mask, max_new_tokens=12)

    for row, prompt in zip(together, (long, short), strict=True):
        alone = generate(
            tiny,
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
        )
        assert row[30:].tolist() == alone[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_other_ways_to_generate_work_with_images(
    options: dict[str, Any], tiny: QwenVLForConditionalGeneration
) -> None:
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(4)])[None]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    common: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6}

    made = generate(
        tiny, input_ids=ids, pixel_values=pixels, disable_compile=True, **common, **options
    )

    if "num_beams" in options:
        assert made.shape == (1, ids.shape[1] + 6)
    else:
        greedy = generate(tiny, input_ids=ids, pixel_values=pixels, **common)
        assert made.tolist() == greedy.tolist()


def test_generation_stops_at_the_end_of_text(tiny: QwenVLForConditionalGeneration) -> None:
    end = tiny_model.IMAGE_START - 214

    assert tiny.generation_config.eos_token_id == end
    assert tiny.generation_config.pad_token_id == end

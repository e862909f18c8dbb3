import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from qwen_vl.errors import CacheError
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import golden_weights, tiny_model
from tests.qwen_vl.model_goldens import LOGITS_ATOL, Golden

COMPAT = ["default", "2023"]


def golden_of(model: QwenVLForConditionalGeneration) -> Golden:
    return Golden(model, Path(), Path())


def new_cache(golden: Golden) -> DynamicCache:
    return DynamicCache(config=golden.model.config.text_config)


def decode(golden: Golden, tokens: Tensor, cache: DynamicCache, start: int) -> list[Tensor]:
    """Feed one token after the other; the probed logits of each."""
    return [
        golden.probed(
            tokens[:, position : position + 1],
            mask=torch.ones(1, position + 1, dtype=torch.long),
            past_key_values=cache,
        )[0, -1]
        for position in range(start, tokens.shape[1])
    ]


def prefill(golden: Golden, tokens: Tensor, **options: Any) -> tuple[Tensor, DynamicCache]:
    cache = new_cache(golden)
    return golden.probed(tokens, past_key_values=cache, **options)[0, -1], cache


def stream(golden: Golden, count: int) -> Tensor:
    length = 6 * golden.cases["long"]["seq_length"] + 16
    return torch.from_numpy(golden_weights.text_ids(length, "long"))[None, :count]


@pytest.mark.parametrize("compat", COMPAT)
@pytest.mark.parametrize("name", ["pub_a", "pub_b"])
def test_steps_after_an_image_are_those_of_2023(
    name: str, compat: str, request: pytest.FixtureRequest
) -> None:
    golden: Golden = request.getfixturevalue(name)
    golden.model.compat = compat
    recorded = golden.cases["cache"]
    first = torch.tensor(recorded["prefill_ids"])[None]
    tokens = torch.cat([first, torch.tensor(recorded["step_ids"])[None]], dim=1)

    _, cache = prefill(golden, first, pixels=golden.pixels(recorded["images"]))
    steps = torch.stack(decode(golden, tokens, cache, first.shape[1]))

    torch.testing.assert_close(steps, golden.numbers["cache/steps"], rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("compat", COMPAT)
def test_steps_of_a_left_padded_batch_are_those_of_2023(compat: str, pub_a: Golden) -> None:
    pub_a.model.compat = compat
    recorded = pub_a.cases["cache_batch"]
    mask = torch.tensor(recorded["attention_mask"])

    cache = new_cache(pub_a)
    pub_a.probed(torch.tensor(recorded["input_ids"]), mask=mask, past_key_values=cache)
    for number, tokens in enumerate(recorded["step_tokens"]):
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        step = torch.tensor(tokens)[:, None]
        logits = pub_a.probed(step, mask=mask, past_key_values=cache)[:, -1]
        expected = pub_a.numbers["cache/batch_steps"][number]
        torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("compat", COMPAT)
def test_every_length_is_rotated_as_in_2023(compat: str, pub_b: Golden) -> None:
    pub_b.model.compat = compat

    for length in pub_b.cases["long"]["single"]:
        logits, _ = prefill(pub_b, stream(pub_b, length))

        expected = pub_b.numbers[f"long/single/{length}/sample_logits_last"]
        torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize(
    ("compat", "cases"),
    [("default", ["56_88", "70_148", "130_140"]), ("2023", ["56_88", "130_140"])],
    ids=COMPAT,
)
def test_decoding_past_the_trained_length_keeps_the_step_of_its_prefill(
    compat: str, cases: list[str], pub_b: Golden
) -> None:
    pub_b.model.compat = compat

    for case in cases:
        start, end = (int(part) for part in case.split("_"))
        tokens = stream(pub_b, end)
        first, cache = prefill(pub_b, tokens[:, :start])
        steps = torch.stack([first, *decode(pub_b, tokens, cache, start)])

        expected = pub_b.numbers[f"long/incremental/{case}/sample_logits"]
        torch.testing.assert_close(steps, expected, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize(
    ("compat", "expected"), [("default", "clean"), ("2023", "leaked")], ids=COMPAT
)
def test_another_conversation_changes_the_rotation_in_2023_only(
    compat: str, expected: str, pub_b: Golden
) -> None:
    pub_b.model.compat = compat
    recorded = pub_b.cases["long"]["interleaved"]
    tokens = stream(pub_b, recorded["prefill"] + 1)

    _, cache = prefill(pub_b, tokens[:, :-1])
    prefill(pub_b, stream(pub_b, recorded["foreign_prefill"]))
    [logits] = decode(pub_b, tokens, cache, tokens.shape[1] - 1)

    torch.testing.assert_close(
        logits,
        pub_b.numbers[f"long/interleaved/{expected}_sample_logits"],
        rtol=0,
        atol=LOGITS_ATOL,
    )


@pytest.mark.parametrize("compat", COMPAT)
def test_left_padding_counts_as_length_in_2023_only(compat: str, pub_b: Golden) -> None:
    pub_b.model.compat = compat
    recorded = pub_b.cases["long"]["padded"]
    tokens, pad = stream(pub_b, recorded["n_tokens"]), recorded["left_pad"]
    padded = torch.nn.functional.pad(tokens, (pad, 0), value=151643)
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (pad, 0))

    logits = pub_b.probed(padded, mask=mask)[0, -1]
    unpadded, _ = prefill(pub_b, tokens)

    wanted = unpadded
    if compat == "2023":
        wanted = pub_b.numbers["long/padded/sample_logits_last"]
        assert (unpadded - wanted).abs().max() > 0.5
    torch.testing.assert_close(logits, wanted, rtol=0, atol=LOGITS_ATOL)


def test_training_neither_stretches_nor_scales(pub_b: Golden) -> None:
    tokens = stream(pub_b, pub_b.cases["long"]["train_mode"]["n"])

    pub_b.model.train()
    try:
        logits, _ = prefill(pub_b, tokens)
    finally:
        pub_b.model.eval()

    expected = pub_b.numbers["long/train_mode/sample_logits_last"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("chunks", [[20, 4, 1, 15], [1, 39], [39, 1]])
def test_chunks_on_a_cache_equal_one_run(
    chunks: list[int], tiny: QwenVLForConditionalGeneration
) -> None:
    tiny.config.text_config.seq_length = 64  # the step of the first chunk is that of the whole
    tokens = tiny_model.text_ids(40)[None]
    cache = DynamicCache(config=tiny.config.text_config)

    with torch.no_grad():
        whole = tiny(tokens).logits
        parts = [
            tiny(part, past_key_values=cache, use_cache=True).logits
            for part in torch.split(tokens, chunks, dim=1)
        ]

    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=LOGITS_ATOL)


def test_an_image_after_a_cached_prefix_is_seen(tiny: QwenVLForConditionalGeneration) -> None:
    tiny.config.text_config.seq_length = 64  # as above
    golden = golden_of(tiny)
    tokens = torch.cat([tiny_model.text_ids(30), tiny_model.image_ids()])[None]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    whole = golden.probed(tokens, pixels)[:, -1]
    _, cache = prefill(golden, tokens[:, :30])
    chunk = golden.probed(tokens[:, 30:], pixels, past_key_values=cache)[:, -1]
    other = golden.probed(tokens, pixels * 0)[:, -1]

    torch.testing.assert_close(chunk, whole, rtol=0, atol=LOGITS_ATOL)
    assert (other - whole).abs().max() > 10 * LOGITS_ATOL


def test_each_row_and_each_copied_cache_keeps_its_own_step(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    golden = golden_of(tiny)
    # one token more, and a fresh prefill of either row would take another step
    long, short = tiny_model.text_ids(32)[None], tiny_model.text_ids(16)[None]
    batch = torch.cat([long, torch.nn.functional.pad(short, (16, 0))])
    mask = torch.ones(2, 33, dtype=torch.long)
    mask[1, :16] = 0
    token = torch.tensor([[5]])

    _, cache = prefill(golden, batch, mask=mask[:, :-1])
    copied = copy.deepcopy(cache)
    alone = []
    for row in (long, short):
        _, own = prefill(golden, row)
        alone += decode(golden, torch.cat([row, token], dim=1), own, row.shape[1])

    prefill(golden, tiny_model.text_ids(50)[None])
    for used in (cache, copied):
        step = golden.probed(token.expand(2, 1), mask=mask, past_key_values=used)[:, -1]
        torch.testing.assert_close(step, torch.stack(alone), rtol=0, atol=LOGITS_ATOL)
    whole = golden.probed(torch.cat([long, token], dim=1))[0, -1]
    assert (whole - alone[0]).abs().max() > 10 * LOGITS_ATOL


def test_a_reset_cache_starts_anew(tiny: QwenVLForConditionalGeneration) -> None:
    golden = golden_of(tiny)
    tokens = tiny_model.text_ids(40)[None]
    static = StaticCache(config=tiny.config.text_config, max_cache_len=64)

    golden.probed(tokens, past_key_values=static)
    static.reset()
    again = golden.probed(tokens[:, :8], past_key_values=static)

    fresh = golden.probed(tokens[:, :8])
    torch.testing.assert_close(again, fresh, rtol=0, atol=LOGITS_ATOL)


def test_repeated_rows_keep_their_step_and_other_batches_are_refused(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    golden = golden_of(tiny)
    tokens = tiny_model.text_ids(20)[None]
    _, once = prefill(golden, tokens)
    [wanted] = decode(golden, torch.cat([tokens, torch.tensor([[1]])], 1), copy.deepcopy(once), 20)
    _, twice = prefill(golden, tokens.expand(2, -1))

    once.batch_repeat_interleave(3)
    step = golden.probed(torch.ones(3, 1, dtype=torch.long), past_key_values=once)[:, -1]
    twice.batch_select_indices(torch.tensor([0, 1, 1]))

    torch.testing.assert_close(step, wanted.expand(3, -1), rtol=0, atol=LOGITS_ATOL)
    with pytest.raises(CacheError, match="2 rows and is used with 3"):
        tiny(torch.tensor([[1], [2], [3]]), past_key_values=twice)

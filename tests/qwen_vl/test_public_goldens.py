"""Every number that was recorded of the 2023 model, for every recorded configuration.

Each test ends with a look at what it has not compared: nothing recorded may be left.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from qwen_vl.errors import QwenVLError
from qwen_vl.image_processing import preprocess
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.vision import stretch_positions
from tests.qwen_vl import golden_weights
from tests.qwen_vl.model_goldens import (
    HIDDEN_ATOL,
    LOGITS_ATOL,
    SHARED,
    VISION_ATOL,
    probes,
    write_folder,
)
from tests.qwen_vl.recorded_numbers import CLOSE_CALL, RecordedNumbers
from tests.qwen_vl.text_goldens import golden

PUBLIC = SHARED / "public"
END = 151643

here = pytest.mark.skipif(not PUBLIC.is_dir(), reason="no golden data beside the checkout")
pytestmark = [pytest.mark.shared, here]


@dataclass(frozen=True)
class Recorded:
    name: str
    model: QwenVLForConditionalGeneration

    def cases(self, kind: str) -> Any:
        path = PUBLIC / self.name / f"{kind}.json"
        if not path.is_file():
            pytest.skip(f"{self.name} has no {kind} cases")
        return json.loads(path.read_text())

    def numbers(self, kind: str) -> RecordedNumbers:
        return RecordedNumbers(PUBLIC / self.name / f"{kind}.npz")

    def pixels(self, paths: list[str]) -> Tensor | None:
        size = self.model.config.vision_config.image_size
        return preprocess([SHARED / path for path in paths], size) if paths else None

    def run(self, ids: Tensor, **options: Any) -> Any:
        with torch.no_grad():
            return self.model(input_ids=ids, **options)

    def last_state(self, ids: Tensor, **options: Any) -> Tensor:
        """The last position's final state (rows, hidden)."""
        with torch.no_grad():
            out: Tensor = self.model.model(input_ids=ids, **options).last_hidden_state[:, -1]
        return out

    def probed(self, state: Tensor) -> Tensor:
        out: Tensor = state @ self.model.lm_head.weight[probes()].T
        return out.detach()


@pytest.fixture(scope="module", params=["pub_a", "pub_b", "pub_c_flags"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    name = request.param
    folder = write_folder(tmp_path_factory.mktemp(name), PUBLIC / name)
    return Recorded(name, load_model(folder, compat="2023"))


@pytest.mark.slow
def test_every_prompt_gives_its_numbers(recorded: Recorded) -> None:
    numbers, cases = recorded.numbers("logits"), recorded.cases("logits")["logits"]
    special = {"cache", "cache_batch", "loss", "loss_batch"}

    for case in cases.keys() - special:
        ids, mask, pixels = _inputs(recorded, cases[case])
        out = recorded.run(ids, attention_mask=mask, pixel_values=pixels, output_hidden_states=True)
        numbers.agree_on_logits(f"logits/{case}", out.logits, mask.bool())
        numbers.agree_on_states(f"logits/{case}", out.hidden_states, mask.bool())
    _check_steps(recorded, numbers, cases["cache"])
    _check_batch_steps(recorded, numbers, cases["cache_batch"])
    for case in ("loss", "loss_batch"):
        ids, mask, pixels = _inputs(recorded, cases[case])
        labels = torch.tensor(cases[case]["labels"]).reshape(ids.shape)
        out = recorded.run(ids, attention_mask=mask, pixel_values=pixels, labels=labels)
        assert out.loss.item() == pytest.approx(cases[case]["loss"], abs=LOGITS_ATOL)

    assert numbers.left == []


def _inputs(recorded: Recorded, case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    ids = torch.tensor(case["input_ids"])
    ids = ids[None] if ids.ndim == 1 else ids
    mask = case.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else torch.tensor(mask).reshape(ids.shape)
    return ids, mask, recorded.pixels(_paths_in(ids))


def _paths_in(ids: Tensor) -> list[str]:
    """Picture files in reading order: an image's ids are the bytes of its path, then padding."""
    rows = [bytes(i if i < 256 else 0 for i in row) for row in ids.tolist()]
    found = []
    for row, raw in zip(ids.tolist(), rows, strict=True):
        starts = [place for place, i in enumerate(row) if i == 151857]
        found += [raw[s + 1 : s + 257].rstrip(b"\0").decode() for s in starts]
    return found


def _check_steps(recorded: Recorded, numbers: RecordedNumbers, case: dict[str, Any]) -> None:
    ids, mask, pixels = _inputs(recorded, {"input_ids": case["prefill_ids"]})
    cache = DynamicCache(config=recorded.model.config.text_config)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    out = recorded.run(
        ids, attention_mask=mask, pixel_values=pixels, output_hidden_states=True, **options
    )
    numbers.agree_on_logits("cache/prefill", out.logits, mask.bool())
    numbers.agree_on_states("cache/prefill", out.hidden_states, mask.bool())
    states, logits = [], []
    for step in case["step_ids"]:
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        out = recorded.run(
            torch.tensor([[step]]), attention_mask=mask, output_hidden_states=True, **options
        )
        states.append(out.hidden_states[-1][0, -1])
        logits.append(out.logits[0, -1])
    rows = torch.stack(logits)
    numbers.agree("cache/steps/sample_logits", rows[:, probes()], LOGITS_ATOL)
    numbers.agree("cache/steps/hidden_final_last", torch.stack(states), HIDDEN_ATOL)
    numbers.agree("cache/steps/argmax", rows.argmax(-1), 0, _clear(rows))
    best = rows.gather(-1, numbers["cache/steps/top8_ids"].long())
    numbers.agree("cache/steps/top8_vals", best, LOGITS_ATOL)


def _clear(logits: Tensor) -> Tensor:
    top = logits.topk(2).values
    clear: Tensor = top[..., 0] - top[..., 1] > CLOSE_CALL
    return clear


def _check_batch_steps(recorded: Recorded, numbers: RecordedNumbers, case: dict[str, Any]) -> None:
    ids, mask, _ = _inputs(recorded, case)
    cache = DynamicCache(config=recorded.model.config.text_config)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    recorded.last_state(ids, attention_mask=mask, **options)
    states = []
    for tokens in case["step_tokens"]:
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        step = torch.tensor(tokens)[:, None]
        states.append(recorded.last_state(step, attention_mask=mask, **options))
    numbers.agree("cache/batch_steps/hidden_final_last", torch.stack(states), HIDDEN_ATOL)
    rows = recorded.probed(torch.stack(states))
    numbers.agree("cache/batch_steps/sample_logits", rows, LOGITS_ATOL)


@pytest.mark.slow
def test_every_picture_gives_its_numbers(recorded: Recorded) -> None:
    cases, numbers = recorded.cases("vision"), recorded.numbers("vision")
    size = recorded.model.config.vision_config.image_size
    tower = recorded.model.model.vision_tower

    for case, about in cases.items():
        if case != "vision/encode_batch":
            _check_picture(recorded, numbers, case, about)
    batch = recorded.pixels(cases["vision/encode_batch"]["paths"])
    assert batch is not None
    rows: Any = recorded.model.get_image_features(batch).pooler_output
    numbers.agree("vision/encode_batch/output", rows.detach(), VISION_ATOL)
    if "vision/pos_interp_rows" in numbers:
        grid = (size // tower.config.patch_size) ** 2
        positions = stretch_positions(tower.position_embedding.detach(), grid)
        expected = numbers["vision/pos_interp_rows"]
        stride = len(positions) // len(expected)
        torch.testing.assert_close(positions[::stride], expected, rtol=0, atol=1e-6)

    assert numbers.left == []


def _check_picture(
    recorded: Recorded, numbers: RecordedNumbers, case: str, about: dict[str, Any]
) -> None:
    pixels: Any = recorded.pixels([about["path"]])
    size = pixels.shape[-1]
    assert float(pixels.abs().max()) == pytest.approx(about["pixel_absmax"], abs=1e-6)
    numbers.agree(f"{case}/pixel_probe", pixels[0, :, :: size // 8, :: size // 8], 1e-6)
    mean, deviation = (
        torch.tensor(values)[:, None, None]
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    resized = ((pixels[0] * deviation + mean) * 255).round().to(torch.uint8).permute(1, 2, 0)
    digest = hashlib.sha256(resized.contiguous().numpy().tobytes()).hexdigest()
    assert digest == about["resized_sha256"]
    if f"{case}/resized_u8_quarter" in numbers:
        numbers.agree(f"{case}/resized_u8_quarter", resized[::4, ::4], 0)
    seen: dict[str, Tensor] = {}
    model = recorded.model.model
    hooks = [
        module.register_forward_hook(_keep(seen, name))
        for name, module in (
            ("ln_pre", model.vision_tower.pre_layernorm),
            ("trunk", model.vision_tower),
            ("resampler", model.multi_modal_projector.attention),
        )
    ]
    with torch.no_grad():
        rows = model.get_image_features(pixels).pooler_output[0]
    for hook in hooks:
        hook.remove()
    stride = about["row_stride"]
    numbers.agree(f"{case}/output", rows, VISION_ATOL)
    numbers.agree(f"{case}/ln_pre_rows", seen["ln_pre"][::stride], VISION_ATOL)
    numbers.agree(f"{case}/trunk_rows", seen["trunk"][::stride], VISION_ATOL)
    numbers.agree(f"{case}/resampler_rows", seen["resampler"][::16], VISION_ATOL)


def _keep(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        seen[name] = getattr(output, "last_hidden_state", output)[0]

    return hook


@pytest.mark.slow
def test_every_length_and_every_cache_gives_its_numbers(recorded: Recorded) -> None:
    cases, numbers = recorded.cases("long"), recorded.numbers("long")
    length = 6 * cases["seq_length"] + 16
    tokens = torch.from_numpy(golden_weights.text_ids(length, "long"))[None]

    for count in cases["single"]:
        key = f"long/single/{count}"
        out = recorded.run(tokens[:, : int(count)], use_cache=False, output_hidden_states=True)
        real = torch.ones(1, int(count), dtype=torch.bool)
        numbers.agree_on_states(key, out.hidden_states, real)
        numbers.agree(f"{key}/sample_logits_last", out.logits[0, -1, probes()], LOGITS_ATOL)
        numbers.agree(f"{key}/argmax", out.logits[0].argmax(-1), 0, _clear(out.logits[0]))
    for case in cases["incremental"]:
        start, end = (int(part) for part in case.split("_"))
        _check_states(recorded, numbers, f"long/incremental/{case}", tokens[:, :end], start)
    _check_interleaved(recorded, numbers, cases["interleaved"], tokens)
    padded = torch.nn.functional.pad(
        tokens[:, : cases["padded"]["n_tokens"]], (cases["padded"]["left_pad"], 0), value=END
    )
    mask = torch.ones_like(padded)
    mask[:, : cases["padded"]["left_pad"]] = 0
    _check_last(numbers, recorded, "long/padded", recorded.last_state(padded, attention_mask=mask))
    recorded.model.compat = "2023"  # forget the step of what ran before
    recorded.model.train()
    state = recorded.last_state(tokens[:, : cases["train_mode"]["n"]], use_cache=False)
    recorded.model.eval()
    _check_last(numbers, recorded, "long/train_mode", state)

    assert numbers.left == []


def _check_last(numbers: RecordedNumbers, recorded: Recorded, key: str, state: Tensor) -> None:
    numbers.agree(f"{key}/hidden_final_last", state, HIDDEN_ATOL)
    numbers.agree(f"{key}/sample_logits_last", recorded.probed(state)[0], LOGITS_ATOL)


def _check_states(
    recorded: Recorded, numbers: RecordedNumbers, key: str, tokens: Tensor, start: int
) -> None:
    states = _steps(recorded, tokens, start)
    numbers.agree(f"{key}/hidden_final_last", states, HIDDEN_ATOL)
    numbers.agree(f"{key}/sample_logits", recorded.probed(states), LOGITS_ATOL)
    with torch.no_grad():
        logits = recorded.model.lm_head(states)
    numbers.agree(f"{key}/argmax", logits.argmax(-1), 0, _clear(logits))


def _check_interleaved(
    recorded: Recorded, numbers: RecordedNumbers, case: dict[str, Any], tokens: Tensor
) -> None:
    start = case["prefill"]
    other = tokens[:, : case["foreign_prefill"]]
    clean = _steps(recorded, tokens[:, : start + 1], start)[-1]
    leaked = _steps(recorded, tokens[:, : start + 1], start, other=other)[-1]
    for name, state in (("clean", clean), ("leaked", leaked)):
        key = f"long/interleaved/{name}_sample_logits"
        numbers.agree(key, recorded.probed(state), LOGITS_ATOL)


def _steps(recorded: Recorded, tokens: Tensor, start: int, other: Tensor | None = None) -> Tensor:
    """Final states after the prefill and after each token more (steps + 1, hidden)."""
    cache = DynamicCache(config=recorded.model.config.text_config)
    options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    rows = [recorded.last_state(tokens[:, :start], **options)[0]]
    if other is not None:
        recorded.last_state(other, use_cache=False)
    for position in range(start, tokens.shape[1]):
        step = tokens[:, position : position + 1]
        mask = torch.ones(1, position + 1, dtype=torch.long)
        rows.append(recorded.last_state(step, attention_mask=mask, **options)[0])
    return torch.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_past_the_trained_length(use_cache: bool, recorded: Recorded) -> None:
    cases = recorded.cases("long")
    case = cases[f"generate_use_cache_{use_cache}"]
    tokens = torch.from_numpy(golden_weights.text_ids(6 * cases["seq_length"] + 16, "long"))[None]
    prompt = tokens[:, : case["prompt_len"]]

    made: Any = recorded.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        use_cache=use_cache,
        max_new_tokens=len(case["new_tokens"]),
        eos_token_id=-1,
        pad_token_id=END,
    )

    assert made[0, prompt.shape[1] :].tolist() == case["new_tokens"]


@pytest.mark.slow
def test_every_way_to_generate_gives_its_tokens(recorded: Recorded) -> None:
    cases = recorded.cases("generate")

    for name, case in cases.items():
        if "error_type" in case:
            stops = json.loads(name.removeprefix("stop_invalid_"))
            with pytest.raises(QwenVLError) as caught:
                recorded.model.generate(torch.tensor([[1, 2]]), stop_words_ids=stops)
            # 2023 also told an empty list by an assertion
            assert isinstance(caught.value, ValueError)
            continue
        new = _generated(recorded, case)
        rows = [row[: len(kept)] for row, kept in zip(new, case["new_tokens"], strict=True)]
        assert rows == case["new_tokens"], name


def _generated(recorded: Recorded, case: dict[str, Any]) -> list[list[int]]:
    ids = torch.tensor(case["input_ids"])
    # without a mask, 2023 attended to padding as well
    mask = torch.tensor(case["attention_mask"]) if "attention_mask" in case else None
    options = case.get("kwargs", {"do_sample": False})
    longest = max(len(row) for row in case["new_tokens"])
    torch.manual_seed(1234)
    made: Any = recorded.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        pixel_values=recorded.pixels(_paths_in(ids)),
        **{"max_new_tokens": longest, **options},
    )
    new: list[list[int]] = made[:, ids.shape[1] :].tolist()
    return new


@pytest.mark.parametrize("name", ["tokenizer", "context", "boxes", "sft_labels"])
def test_no_text_case_was_left_out_of_the_assets(name: str) -> None:
    """Those files are parametrized whole, and differ from the recorded ones in words of errors."""
    kept, everything = golden(name), json.loads((PUBLIC / f"{name}.json").read_text())

    assert _without_words(kept) == _without_words(everything)


def _without_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_words(one) for key, one in value.items() if key != "error"}
    return [_without_words(one) for one in value] if isinstance(value, list) else value


def test_no_conversation_was_left_out() -> None:
    from tests.qwen_vl.test_chat_goldens import NAMES
    from tests.qwen_vl.test_streaming import CASES

    for config in PUBLIC.glob("*/chat.json"):
        assert json.loads(config.read_text()).keys() == {*NAMES, *CASES}


def test_no_quantized_case_was_left_out() -> None:
    from tests.qwen_vl.test_int4 import RECORDED

    assert set(RECORDED) == json.loads((PUBLIC / "gptq.json").read_text())["cases"].keys()

"""Every number that was recorded of the 2023 model, for every recorded configuration."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from qwen_vl.image_processing import preprocess
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import golden_weights
from tests.qwen_vl.model_goldens import (
    LOGITS_ATOL,
    SHARED,
    VISION_ATOL,
    features,
    probes,
    write_folder,
)

PUBLIC = SHARED / "public"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(not PUBLIC.is_dir(), reason="no golden data beside the checkout"),
]


@dataclass(frozen=True)
class Recorded:
    name: str
    model: QwenVLForConditionalGeneration

    def cases(self, kind: str) -> Any:
        path = PUBLIC / self.name / f"{kind}.json"
        if not path.is_file():
            pytest.skip(f"{self.name} has no {kind} cases")
        return json.loads(path.read_text())

    def numbers(self, kind: str) -> dict[str, Tensor]:
        with np.load(PUBLIC / self.name / f"{kind}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    def pixels(self, paths: list[str]) -> Tensor | None:
        size = self.model.config.vision_config.image_size
        return preprocess([SHARED / path for path in paths], size) if paths else None

    def run(self, ids: Tensor, **options: Any) -> Tensor:
        """Logits (rows, positions, probes)."""
        with torch.no_grad():
            hidden = self.model.model(input_ids=ids, **options).last_hidden_state
            out: Tensor = hidden @ self.model.lm_head.weight[probes()].T
        return out


@pytest.fixture(scope="module", params=["pub_a", "pub_b", "pub_c_flags"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    name = request.param
    folder = write_folder(tmp_path_factory.mktemp(name), PUBLIC / name)
    return Recorded(name, load_model(folder, compat="2023"))


def test_every_prompt_gives_its_logits(recorded: Recorded) -> None:
    numbers, seen = recorded.numbers("logits"), 0

    for case, inputs in recorded.cases("logits")["logits"].items():
        if f"logits/{case}/sample_logits" not in numbers:
            continue
        ids = torch.tensor(inputs["input_ids"])
        ids = ids[None] if ids.ndim == 1 else ids
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else torch.tensor(mask).reshape(ids.shape)
        logits = recorded.run(ids, attention_mask=mask, pixel_values=_pixels(recorded, inputs))
        real, expected = mask.bool(), numbers[f"logits/{case}/sample_logits"]
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=LOGITS_ATOL)
        seen += 1

    assert seen >= 9


def _pixels(recorded: Recorded, inputs: dict[str, Any]) -> Tensor | None:
    prompts = inputs.get("prompts") or [inputs["prompt"]]
    return recorded.pixels([path for t in prompts for path in re.findall("<img>(.*?)</img>", t)])


def test_every_picture_gives_its_features(recorded: Recorded) -> None:
    cases, numbers, seen = recorded.cases("vision"), recorded.numbers("vision"), 0

    for case, about in cases.items():
        if not (isinstance(about, dict) and "path" in about):
            continue
        pixels = recorded.pixels([about["path"]])
        rows = features(recorded.model, pixels)
        torch.testing.assert_close(rows[0], numbers[f"{case}/output"], rtol=0, atol=VISION_ATOL)
        seen += 1

    assert seen >= 5


def test_every_length_and_every_cache_gives_its_logits(recorded: Recorded) -> None:
    cases, numbers = recorded.cases("long"), recorded.numbers("long")
    length = 6 * cases["seq_length"] + 16
    tokens = torch.from_numpy(golden_weights.text_ids(length, "long"))[None]

    def agree(logits: Tensor, key: str) -> None:
        torch.testing.assert_close(logits, numbers[f"long/{key}"], rtol=0, atol=LOGITS_ATOL)

    for count in cases["single"]:
        logits = recorded.run(tokens[:, : int(count)], use_cache=False)
        agree(logits[0, -1], f"single/{count}/sample_logits_last")
    for case in cases["incremental"]:
        start, end = (int(part) for part in case.split("_"))
        agree(_steps(recorded, tokens[:, :end], start), f"incremental/{case}/sample_logits")
    between = cases["interleaved"]
    start = between["prefill"]
    clean = _steps(recorded, tokens[:, : start + 1], start)
    leaked = _steps(
        recorded, tokens[:, : start + 1], start, other=tokens[:, : between["foreign_prefill"]]
    )
    agree(clean[-1], "interleaved/clean_sample_logits")
    agree(leaked[-1], "interleaved/leaked_sample_logits")
    padded = torch.nn.functional.pad(
        tokens[:, : cases["padded"]["n_tokens"]], (cases["padded"]["left_pad"], 0), value=151643
    )
    mask = torch.ones_like(padded)
    mask[:, : cases["padded"]["left_pad"]] = 0
    agree(recorded.run(padded, attention_mask=mask)[0, -1], "padded/sample_logits_last")


def _steps(recorded: Recorded, tokens: Tensor, start: int, other: Tensor | None = None) -> Tensor:
    """Logits after the prefill and after each token more (steps + 1, probes)."""
    cache = DynamicCache(config=recorded.model.config.text_config)
    rows = [recorded.run(tokens[:, :start], past_key_values=cache)[0, -1]]
    if other is not None:
        recorded.run(other, use_cache=False)
    for position in range(start, tokens.shape[1]):
        step = tokens[:, position : position + 1]
        mask = torch.ones(1, position + 1, dtype=torch.long)
        rows.append(recorded.run(step, attention_mask=mask, past_key_values=cache)[0, -1])
    return torch.stack(rows)


def test_training_mode_gives_its_logits(recorded: Recorded, tmp_path: Path) -> None:
    cases = recorded.cases("long")
    tokens = torch.from_numpy(golden_weights.text_ids(cases["train_mode"]["n"], "long"))[None]

    recorded.model.compat = "2023"  # forget the step of what ran before
    recorded.model.train()
    logits = recorded.run(tokens, use_cache=False)
    recorded.model.eval()

    expected = recorded.numbers("long")["long/train_mode/sample_logits_last"]
    torch.testing.assert_close(logits[0, -1], expected, rtol=0, atol=LOGITS_ATOL)


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
        pad_token_id=151643,
    )

    assert made[0, prompt.shape[1] :].tolist() == case["new_tokens"]

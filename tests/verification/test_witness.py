"""The independent forward against logits of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.verification import published
from verification.errors import WitnessError
from verification.witness import WitnessInput, witness_logits

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    published.need_goldens()
    return published.write_original("pub_a", tmp_path_factory.mktemp("witness") / "pub_a")


def _given(case: str, *images: str) -> WitnessInput:
    ids = published.golden("pub_a", "logits.json")["logits"][case]["input_ids"]
    seen = [published.pixels(name, 112) for name in images]
    return WitnessInput(torch.tensor(ids), torch.cat(seen) if seen else None, last=len(ids))


def test_the_witness_agrees_with_the_published_code_on_text_and_images(original: Path) -> None:
    cases = {
        "text": _given("text"),
        "text_zh": _given("text_zh"),
        "one_image": _given("one_image", "images/synth_rgb.png"),
    }

    found = witness_logits(original, list(cases.values()))

    sampled = published.recipe().sample_ids()
    with np.load(published.GOLDENS / "public" / "pub_a" / "logits.npz") as expected:
        for case, logits in zip(cases, found, strict=True):
            wanted = expected[f"logits/{case}/sample_logits"][0]
            assert np.abs(logits.numpy()[:, sampled] - wanted).max() < 2e-4
            assert (logits.argmax(-1).numpy() == expected[f"logits/{case}/argmax"][0]).all()


def test_the_witness_says_so_when_a_prompt_is_beyond_what_it_covers(original: Path) -> None:
    long = WitnessInput(torch.zeros(2049, dtype=torch.long), None, last=1)

    with pytest.raises(WitnessError, match="beyond seq_length 2048"):
        witness_logits(original, [long])


def test_the_witness_reads_the_2023_layout_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen_vl"}))

    with pytest.raises(WitnessError, match="2023 layout"):
        witness_logits(tmp_path, [])

import json

import numpy as np
import pytest
import torch

from qwen_vl.errors import ImageShapeError
from qwen_vl.image_processing import preprocess
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.projector import sincos_table
from qwen_vl.vision import stretch_positions
from tests.qwen_vl import golden_weights
from tests.qwen_vl.model_goldens import SHARED, VISION_ATOL, Golden, features

CASES = ["synth_rgb.png", "synth_rgba.png", "encode_batch"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["pub_a", "pub_b"])
def test_image_features_are_those_of_2023(
    name: str, case: str, request: pytest.FixtureRequest
) -> None:
    golden: Golden = request.getfixturevalue(name)
    pixels = golden.pixels(golden.cases["vision"][case]["images"])

    rows = features(golden.model, pixels)

    assert rows.shape[1:] == (256, golden.model.config.text_config.hidden_size)
    expected = golden.numbers[f"vision/{case}/output"]
    torch.testing.assert_close(
        rows[:, ::16].reshape(expected.shape), expected, rtol=0, atol=VISION_ATOL
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pub_a", "pub_b"])
def test_photographs_give_the_features_of_2023(name: str, request: pytest.FixtureRequest) -> None:
    if not SHARED.is_dir():
        pytest.skip("the golden data is not beside the checkout")
    golden: Golden = request.getfixturevalue(name)
    recorded = json.loads((SHARED / "public" / name / "vision.json").read_text())
    photographs = [key for key in recorded if key.endswith(".jpeg")]
    assert photographs

    with np.load(SHARED / "public" / name / "vision.npz") as numbers:
        for key in photographs:
            pixels = preprocess([SHARED / recorded[key]["path"]], golden.image_size)
            rows = features(golden.model, pixels)[0]
            expected = torch.from_numpy(numbers[f"{key}/output"])
            torch.testing.assert_close(rows, expected, rtol=0, atol=VISION_ATOL)


def test_eager_and_sdpa_attention_agree(pub_a: Golden) -> None:
    pixels = pub_a.pixels(["synth_rgb.png"])

    sdpa = features(pub_a.model, pixels)
    pub_a.model.set_attn_implementation("eager")
    try:
        eager = features(pub_a.model, pixels)
    finally:
        pub_a.model.set_attn_implementation("sdpa")

    torch.testing.assert_close(eager, sdpa, rtol=0, atol=VISION_ATOL)


def test_a_table_of_the_right_size_is_not_touched() -> None:
    table = torch.randn(16, 4)

    assert stretch_positions(table, 16) is table


def test_positions_are_stretched_in_float32_and_rounded_once() -> None:
    table = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).bfloat16()

    stretched = stretch_positions(table, 64)

    assert stretched.dtype == torch.bfloat16
    assert torch.equal(stretched, stretch_positions(table.float(), 64).bfloat16())


def test_grids_that_are_not_square_are_refused(tiny: QwenVLForConditionalGeneration) -> None:
    with pytest.raises(ImageShapeError, match="28 x 35"):
        tiny.get_image_features(torch.zeros(1, 3, 28, 35))
    with pytest.raises(ImageShapeError, match="not square"):
        stretch_positions(torch.zeros(16, 4), 15)


def test_a_fresh_projector_has_the_table_that_checkpoints_store() -> None:
    made = sincos_table(256, 128)

    torch.testing.assert_close(
        made, torch.from_numpy(golden_weights.position_table(256, 128)), rtol=0, atol=1e-6
    )

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_vl.errors import ImageBlockError, InputError
from qwen_vl.image_processing import preprocess
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import golden_weights, tiny_model
from tests.qwen_vl.model_goldens import (
    HIDDEN_ATOL,
    LOGITS_ATOL,
    SHARED,
    Golden,
    probes,
    shared_pictures,
    write_folder,
)

SINGLE = ["text", "text_zh", "one_image", "two_images", "image_at_end"]
BATCHES = ["batch_text", "batch_mixed", "batch_two_with_images"]


@pytest.mark.parametrize("compat", ["default", "2023"])
@pytest.mark.parametrize("case", SINGLE + BATCHES)
def test_logits_within_the_trained_length_are_those_of_2023(
    case: str, compat: str, pub_a: Golden
) -> None:
    pub_a.model.compat = compat
    recorded = pub_a.cases["logits"][case]

    logits = pub_a.run(recorded)

    real = pub_a.real(recorded)
    expected = pub_a.numbers[f"logits/{case}"]
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=LOGITS_ATOL)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("case", SINGLE)
def test_logits_beyond_the_trained_length_are_those_of_2023(case: str, pub_b: Golden) -> None:
    logits = pub_b.run(pub_b.cases["logits"][case])

    torch.testing.assert_close(logits, pub_b.numbers[f"logits/{case}"], rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("case", ["batch_mixed", "batch_two_with_images"])
def test_compat_2023_counts_left_padding_as_length(case: str, pub_b: Golden) -> None:
    recorded, expected = pub_b.cases["logits"][case], pub_b.numbers[f"logits/{case}"]
    real = pub_b.real(recorded)

    repaired = pub_b.run(recorded)
    pub_b.model.compat = "2023"
    reproduced = pub_b.run(recorded)

    torch.testing.assert_close(reproduced[real], expected[real], rtol=0, atol=LOGITS_ATOL)
    assert (repaired[real] - expected[real]).abs().max() > 0.5


def test_rows_of_a_left_padded_batch_equal_single_runs(pub_b: Golden) -> None:
    batch = pub_b.cases["logits"]["batch_mixed"]
    ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])

    pixels = pub_b.pixels(batch["images"])
    together = pub_b.probed(ids, pixels, mask)
    long = pub_b.probed(ids[:1], pixels)
    alone = pub_b.probed(ids[1:, -int(mask[1].sum()) :])

    torch.testing.assert_close(together[:1], long, rtol=0, atol=LOGITS_ATOL)
    torch.testing.assert_close(together[1:, -alone.shape[1] :], alone, rtol=0, atol=LOGITS_ATOL)


def test_position_ids_are_honoured_and_in_compat_2023_ignored(pub_b: Golden) -> None:
    ids = torch.tensor([[785, 3974, 13876, 38835, 34208]])
    apart = torch.tensor([[0, 10, 20, 30, 40]])

    with torch.no_grad():
        plain = pub_b.model(input_ids=ids).logits
        moved = pub_b.model(input_ids=ids, position_ids=apart, attention_mask=ids > 0).logits
        pub_b.model.compat = "2023"
        ignored = pub_b.model(input_ids=ids, position_ids=apart, attention_mask=ids > 0).logits

    assert (moved - plain).abs().max() > 0.1
    torch.testing.assert_close(ignored, plain, rtol=0, atol=LOGITS_ATOL)


# in `loss_batch` a padding token predicts the first label, so its mask shows
@pytest.mark.parametrize(("case", "compat"), [("loss", "default"), ("loss_batch", "2023")])
def test_the_loss_is_that_of_2023(case: str, compat: str, pub_a: Golden) -> None:
    pub_a.model.compat = compat
    recorded = pub_a.cases["loss"][case]
    mask = recorded["attention_mask"]

    with torch.no_grad():
        out = pub_a.model(
            input_ids=torch.tensor(recorded["input_ids"]),
            labels=torch.tensor(recorded["labels"]),
            attention_mask=None if mask is None else torch.tensor(mask),
            pixel_values=pub_a.pixels(recorded["images"]),
        )

    assert out.loss.item() == pytest.approx(recorded["loss"], abs=LOGITS_ATOL)


def test_both_attentions_agree_and_keep_padding_finite(pub_a: Golden) -> None:
    recorded = pub_a.cases["logits"]["batch_text"]

    sdpa = pub_a.run(recorded)
    pub_a.model.set_attn_implementation("eager")
    try:
        eager = pub_a.run(recorded)
    finally:
        pub_a.model.set_attn_implementation("sdpa")

    real = pub_a.real(recorded)
    torch.testing.assert_close(eager[real], sdpa[real], rtol=0, atol=LOGITS_ATOL)
    assert torch.isfinite(eager).all()


def test_image_rows_replace_what_stands_between_the_tags_and_nothing_else(pub_a: Golden) -> None:
    recorded = pub_a.cases["logits"]["one_image"]
    ids, pixels = torch.tensor(recorded["input_ids"]), pub_a.pixels(recorded["images"])
    start = ids[0].tolist().index(pub_a.model.config.image_start_token_id)

    with torch.no_grad():
        out = pub_a.model(input_ids=ids, pixel_values=pixels, output_hidden_states=True)
        embedded = pub_a.model.get_input_embeddings()(ids)

    first = out.hidden_states[0]
    assert torch.equal(first[0, start + 1 : start + 257], out.image_hidden_states[0])
    assert torch.equal(first[0, : start + 1], embedded[0, : start + 1])
    assert torch.equal(first[0, start + 257 :], embedded[0, start + 257 :])


def test_ids_inside_an_image_do_not_matter(tiny: QwenVLForConditionalGeneration) -> None:
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(4)])[None]
    padded = ids.clone()
    padded[0, 1 : tiny_model.QUERIES + 1] = tiny.config.image_token_id
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        logits = tiny(input_ids=ids, pixel_values=pixels).logits
        same = tiny(input_ids=padded, pixel_values=pixels).logits

    assert torch.equal(logits, same)


@pytest.mark.parametrize(
    ("ids", "images", "message"),
    [
        (tiny_model.image_ids(), 2, "1 image blocks, and pixel_values 2"),
        (tiny_model.text_ids(30), 1, "0 image blocks, and pixel_values 1"),
        (tiny_model.image_ids()[:-2].repeat(2), 1, "unclosed run"),
        (tiny_model.image_ids()[[0, 1, 2, -1]], 1, "has 2 places"),
        (tiny_model.image_ids(), 0, "no pixel_values"),
    ],
)
def test_blocks_that_do_not_fit_the_images_are_refused(
    ids: torch.Tensor, images: int, message: str, tiny: QwenVLForConditionalGeneration
) -> None:
    pixels = torch.zeros(images, 3, 28, 28) if images else None

    with pytest.raises(ImageBlockError, match=message) as caught:
        tiny(input_ids=ids[None], pixel_values=pixels)

    assert isinstance(caught.value, ValueError)
    assert caught.value.hint


def test_a_lone_end_tag_and_a_last_start_tag_are_text(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    start, end = tiny.config.image_start_token_id, tiny.config.image_end_token_id
    ids = torch.cat([torch.tensor([end]), tiny_model.image_ids(), torch.tensor([start])])[None]

    out = tiny(input_ids=ids, pixel_values=torch.zeros(1, 3, 28, 28))

    assert out.image_hidden_states.shape == (1, tiny_model.QUERIES, tiny_model.HIDDEN)


def test_embeddings_take_the_place_of_ids_and_never_join_them(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    ids = tiny_model.text_ids(5)[None]
    embedded = tiny.get_input_embeddings()(ids)

    with torch.no_grad():
        assert torch.equal(tiny(inputs_embeds=embedded).logits, tiny(input_ids=ids).logits)

    with pytest.raises(InputError):
        tiny(input_ids=ids, inputs_embeds=embedded)
    with pytest.raises(InputError):
        tiny()


def test_only_the_asked_logits_are_computed(tiny: QwenVLForConditionalGeneration) -> None:
    ids = tiny_model.text_ids(5)[None]

    with torch.no_grad():
        whole = tiny(input_ids=ids).logits
        last = tiny(input_ids=ids, logits_to_keep=1).logits

    torch.testing.assert_close(last, whole[:, -1:])


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> QwenVLForConditionalGeneration:
    source = SHARED / "public" / "pub_c_flags"
    if not source.is_dir():
        pytest.skip("the golden data is not beside the checkout")
    return load_model(write_folder(tmp_path_factory.mktemp("pub_c_flags"), source))


def _check_full(model: QwenVLForConditionalGeneration, source: Path, case: str) -> None:
    recorded = json.loads((source / "logits.json").read_text())["logits"][case]
    pictures = shared_pictures(recorded)
    size = model.config.vision_config.image_size
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(recorded["input_ids"]).reshape(1, -1),
            pixel_values=preprocess(pictures, size) if pictures else None,
            output_hidden_states=True,
        )
    seen = torch.from_numpy(golden_weights.projection(model.config.text_config.hidden_size))
    with np.load(source / "logits.npz") as numbers:
        expected = torch.from_numpy(numbers[f"logits/{case}/sample_logits"])
        hidden = torch.from_numpy(numbers[f"logits/{case}/hidden_proj"])
    torch.testing.assert_close(out.logits[..., probes()], expected, rtol=0, atol=LOGITS_ATOL)
    projected = torch.stack([state @ seen for state in out.hidden_states])
    torch.testing.assert_close(projected, hidden, rtol=0, atol=HIDDEN_ATOL)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "case"), [("pub_a", "real_image"), ("pub_b", "text"), ("pub_b", "one_image")]
)
def test_every_recorded_number_of_a_case_agrees(
    name: str, case: str, request: pytest.FixtureRequest
) -> None:
    if not SHARED.is_dir():
        pytest.skip("the golden data is not beside the checkout")

    _check_full(request.getfixturevalue(name).model, SHARED / "public" / name, case)


@pytest.mark.shared
@pytest.mark.parametrize("case", ["text", "one_image"])
def test_biases_and_switched_off_ntk_are_read_from_the_config(
    case: str, flags: QwenVLForConditionalGeneration
) -> None:
    _check_full(flags, SHARED / "public" / "pub_c_flags", case)

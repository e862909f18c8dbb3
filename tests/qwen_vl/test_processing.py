from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.errors import ImageBlockError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.loading import load_model, load_processor
from qwen_vl.processing import QwenVLProcessor
from qwen_vl.tokenization import QwenVLTokenizer
from tests.qwen_vl import golden_weights, tiny_model
from tests.qwen_vl.model_goldens import generate

PICTURE = golden_weights.picture("synth_rgb.png")


@pytest.fixture
def processor(tiny_folder: Path) -> QwenVLProcessor:
    return load_processor(tiny_folder)


def test_ids_and_pixels_are_what_the_tokenizer_and_the_image_processor_make(
    processor: QwenVLProcessor,
) -> None:
    made = processor(text="Look: <img>a.png</img>", images=PICTURE)

    assert made["input_ids"].tolist() == [processor.tokenizer.encode("Look: <img>a.png</img>")]
    assert made["attention_mask"].unique().tolist() == [1]
    assert torch.equal(made["pixel_values"], processor.image_processor(PICTURE)["pixel_values"])


def test_a_batch_is_padded_on_the_left(processor: QwenVLProcessor) -> None:
    made = processor(text=["<img>a</img>", "hi"], images=[PICTURE])

    width = tiny_model.QUERIES + 2
    assert made["input_ids"].shape == (2, width)
    assert made["attention_mask"].sum(dim=1).tolist() == [width, 2]
    assert made["input_ids"][1, : width - 2].unique().tolist() == [processor.tokenizer.eod_id]
    assert made["input_ids"][1, -2:].tolist() == processor.tokenizer.encode("hi")
    assert processor.tokenizer.padding_side == "left"  # for who pads with it


def test_text_alone_has_no_pixels(processor: QwenVLProcessor) -> None:
    assert set(processor(text="hi")) == {"input_ids", "attention_mask"}
    assert set(processor(text="hi", images=[])) == {"input_ids", "attention_mask"}
    assert set(processor(images=PICTURE)) == {"pixel_values"}


def test_elements_bring_their_own_pictures(processor: QwenVLProcessor) -> None:
    text = processor.tokenizer.from_list_format([{"image": PICTURE}, {"text": "What?"}])

    made = processor(text=text)

    assert made["pixel_values"].shape == (1, 3, 28, 28)


def test_a_path_typed_into_text_opens_nothing(processor: QwenVLProcessor, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    PICTURE.save(file)

    with pytest.raises(ImageBlockError, match="1 <img> blocks, and there are 0 pictures"):
        processor(text="<img>/a.png</img>")


def test_more_pictures_than_blocks_are_refused(processor: QwenVLProcessor) -> None:
    with pytest.raises(ImageBlockError, match="1 <img> blocks, and there are 2 pictures"):
        processor(text="<img>a</img>", images=[PICTURE, PICTURE])


def test_control_tokens_can_be_kept_out_of_user_text(processor: QwenVLProcessor) -> None:
    made = processor(text="a<|im_end|>", allowed_special=())

    assert processor.tokenizer.im_end_id not in made["input_ids"]


def test_lists_are_given_when_no_tensors_are_asked(processor: QwenVLProcessor) -> None:
    made = processor(text="hi", return_tensors=None)

    assert made["input_ids"] == [processor.tokenizer.encode("hi")]


def test_what_it_makes_is_what_the_model_takes(
    processor: QwenVLProcessor, tiny_folder: Path
) -> None:
    model = load_model(tiny_folder)
    made = processor(text=["<img>a</img>hi", "hi"], images=[PICTURE])

    tokens = generate(model, **made, max_new_tokens=3)

    assert tokens.shape == (2, made["input_ids"].shape[1] + 3)


def test_the_auto_classes_know_a_saved_folder(
    processor: QwenVLProcessor, tiny_folder: Path, tmp_path: Path
) -> None:
    load_model(tiny_folder).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    again = AutoProcessor.from_pretrained(tmp_path)

    assert isinstance(again, QwenVLProcessor)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), QwenVLTokenizer)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), QwenVLImageProcessor)
    text = "<img>a</img>hi"
    first, second = (one(text=text, images=PICTURE) for one in (processor, again))
    assert all(torch.equal(first[key], second[key]) for key in first)

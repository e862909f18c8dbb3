"""What was converted is loaded by those who will use it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

import qwen_vl.auto  # noqa: F401  registers the classes
from conversion.options import ToTransformersOptions
from conversion.steps import to_transformers
from model_store.manifest import Manifest, scan, write_manifest
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.loading import load_model, load_processor
from qwen_vl.side_files import image_processor
from scripts.make_tiny_checkpoint import make_checkpoint
from tests.conversion import published


def _native(source: Path) -> Path:
    target = source.parent / "native"
    return to_transformers(source, target, ToTransformersOptions(str(source))).folder


def _inputs(folder: Path) -> dict[str, torch.Tensor]:
    processor = load_processor(folder)
    rng = np.random.default_rng(0)
    picture: NDArray[np.uint8] = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    ids = processor.tokenizer.encode("<img>a</img>hello world")
    pixels = processor.image_processor.preprocess([picture], return_tensors="pt")
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels["pixel_values"]}


@pytest.mark.parametrize("int4", [False, True], ids=["bf16", "int4"])
def test_both_layouts_answer_the_same(tmp_path: Path, int4: bool) -> None:
    torch.set_num_threads(1)
    source = published.make_snapshot(tmp_path / "source", int4=int4)

    native = _native(source)

    inputs = _inputs(source)
    with torch.no_grad():
        expected = load_model(source, dtype="float32")(**inputs).logits
        actual = load_model(native, dtype="float32")(**inputs).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_the_tiny_checkpoint_is_converted_and_loads_with_stock_transformers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = tmp_path / "source"
    make_checkpoint(source, seed=5, rank_file=published.rank_file())
    write_manifest(source, Manifest(files=scan(source)))

    native = _native(source)

    inputs = _inputs(native)
    stock = AutoModelForImageTextToText.from_pretrained(native, dtype="float32").eval()
    with torch.no_grad():
        expected = load_model(source, dtype="float32")(**inputs).logits
        actual = stock(**inputs).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_files_beside_the_weights_are_what_transformers_reads(tmp_path: Path) -> None:
    native = _native(published.make_snapshot(tmp_path / "source"))

    tokenizer = AutoTokenizer.from_pretrained(native)
    pictures = AutoImageProcessor.from_pretrained(native)
    processor = AutoProcessor.from_pretrained(native)
    generation = GenerationConfig.from_pretrained(native)

    assert type(tokenizer).__name__ == "QwenVLTokenizer"
    assert (tokenizer.n_image_tokens, tokenizer.model_max_length) == (256, 8192)
    assert (pictures.size["height"], pictures.size["width"]) == (published.IMAGE, published.IMAGE)
    assert type(processor).__name__ == "QwenVLProcessor"
    assert generation.to_dict()["chat_format"] == "chatml"


def test_the_image_processor_file_has_the_code_s_own_numbers() -> None:
    ours = QwenVLImageProcessor().to_dict()

    written = image_processor(448)

    for key in ("image_mean", "image_std", "resample", "rescale_factor", "do_convert_rgb"):
        value = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
        assert written[key] == value, key
    assert written["size"] == dict(ours["size"])

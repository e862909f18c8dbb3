import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_vl.errors import ImageNotAllowedError, NotAnImageError
from qwen_vl.image_processing import IMAGE_MEAN, IMAGE_STD, QwenVLImageProcessor, preprocess
from tests.qwen_vl import golden_weights
from tests.qwen_vl.model_goldens import Golden


@pytest.mark.parametrize("picture", ["synth_rgb.png", "synth_rgba.png"])
def test_pixels_are_those_of_2023_to_the_bit(picture: str, pub_a: Golden) -> None:
    size = pub_a.image_size

    pixels = preprocess([golden_weights.picture(picture)], size)[0]

    probe = pub_a.numbers[f"vision/{picture}/pixel_probe"]
    assert torch.equal(pixels[:, :: size // 8, :: size // 8], probe)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    resized = ((pixels * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0)
    digest = hashlib.sha256(resized.contiguous().numpy().tobytes()).hexdigest()
    assert digest == pub_a.cases["vision"][picture]["resized_sha256"]


def test_every_mode_becomes_rgb() -> None:
    pictures = [golden_weights.picture(name) for name in golden_weights.PICTURES]

    pixels = preprocess(pictures, 28)

    assert pixels.shape == (len(pictures), 3, 28, 28)
    assert pixels.dtype == torch.float32


def test_alpha_is_dropped_and_not_composited() -> None:
    rgba = golden_weights.picture("synth_rgba.png")
    opaque = Image.fromarray(np.asarray(rgba)[..., :3])
    palette = golden_weights.picture("synth_palette.png")
    expected = preprocess([palette], 28)
    palette.info["transparency"] = bytes(range(16))

    assert torch.equal(preprocess([rgba], 28), preprocess([opaque], 28))
    assert torch.equal(preprocess([palette], 28), expected)


def test_no_picture_is_an_empty_batch() -> None:
    assert preprocess([], 28).shape == (0, 3, 28, 28)


def test_the_processor_takes_paths_bytes_arrays_and_nesting(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture = golden_weights.picture("synth_rgb.png")
    picture.save(file)
    processor = QwenVLImageProcessor(size={"height": 28, "width": 28})

    forms = [file, str(file), file.read_bytes(), np.asarray(picture), picture]
    pixels = processor.preprocess([forms[:2], forms[2:]], return_tensors="pt")["pixel_values"]

    assert pixels.shape == (5, 3, 28, 28)
    assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_addresses_are_not_fetched() -> None:
    processor = QwenVLImageProcessor()

    with pytest.raises(ImageNotAllowedError):
        processor.preprocess("https://127.0.0.1/a.png")
    with pytest.raises(ImageNotAllowedError):
        processor.fetch_images(["http://127.0.0.1/a.png"])


@pytest.mark.parametrize("size", [{"height": 28, "width": 14}, {"longest_edge": 28}])
def test_sizes_that_are_not_square_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(NotAnImageError, match="square"):
        QwenVLImageProcessor()(golden_weights.picture("synth_tiny.png"), size=size)


def test_arrays_of_another_kind_are_refused() -> None:
    with pytest.raises(NotAnImageError, match="uint8"):
        QwenVLImageProcessor()(np.zeros((4, 4, 3), dtype=np.float32))


def test_a_saved_processor_comes_back(tmp_path: Path) -> None:
    QwenVLImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)

    again = QwenVLImageProcessor.from_pretrained(tmp_path)

    picture = golden_weights.picture("synth_tall.png")
    assert torch.equal(again(picture)["pixel_values"], preprocess([picture], 28))

import hashlib
import io
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


def _drawn(mode: str) -> Image.Image:
    grey = golden_weights.picture("synth_gray.png")
    if mode.startswith("I;16"):
        wide = np.asarray(grey).astype(">u2" if mode.endswith("B") else "<u2") * 40
        return Image.frombytes(mode, grey.size, wide.astype(wide.dtype).tobytes())
    return (grey if mode in ("I", "F") else golden_weights.picture("synth_rgb.png")).convert(mode)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@pytest.mark.parametrize("mode", [*MODES, "I", "F", "I;16", "I;16B"])
def test_every_mode_of_pillow_gives_what_the_original_call_gave(mode: str) -> None:
    picture = _drawn(mode)
    resized = picture.convert("RGB").resize((28, 28), Image.Resampling.BICUBIC)
    scaled = (np.asarray(resized) / 255 - IMAGE_MEAN) / IMAGE_STD

    pixels = preprocess([picture], 28)

    expected = torch.from_numpy(scaled.transpose(2, 0, 1)).float()
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "CMYK"),
        ("TIFF", "CMYK"),
        ("TIFF", "F"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("WEBP", "RGB"),
    ],
)
def test_files_of_every_mode_are_read_as_pillow_reads_them(format: str, mode: str) -> None:
    file = io.BytesIO()
    _drawn(mode).save(file, format)

    with Image.open(io.BytesIO(file.getvalue())) as opened:
        assert torch.equal(preprocess([file.getvalue()], 28), preprocess([opened.copy()], 28))


def test_orientation_tags_are_ignored_and_of_an_animation_the_first_picture_counts() -> None:
    picture = golden_weights.picture("synth_rgb.png")
    turned, plain, moving = io.BytesIO(), io.BytesIO(), io.BytesIO()
    tags = Image.Exif()
    tags[0x0112] = 6  # to be shown turned by a quarter
    picture.save(turned, "JPEG", exif=tags)
    picture.save(plain, "JPEG")
    picture.save(moving, "PNG", save_all=True, append_images=[picture.rotate(90)])

    assert torch.equal(preprocess([turned.getvalue()], 28), preprocess([plain.getvalue()], 28))
    assert torch.equal(preprocess([moving.getvalue()], 28), preprocess([picture], 28))


def test_a_picture_that_cannot_become_rgb_is_refused() -> None:
    with pytest.raises(NotAnImageError, match="La"):
        preprocess([golden_weights.picture("synth_gray.png").convert("LA").convert("La")], 28)


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

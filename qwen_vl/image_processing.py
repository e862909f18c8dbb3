"""Pictures to pixel_values: RGB, Pillow's bicubic to a square, CLIP's mean and deviation.

Alpha is dropped and the aspect ratio not kept, as in the original. Nothing is fetched from the
network, and no orientation tag is applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from qwen_vl.errors import NotAnImageError
from qwen_vl.image_sources import ImageInput, open_image

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SIZE = 448


def preprocess(images: Iterable[ImageInput], image_size: int) -> Tensor:
    """Make pixel_values (images, 3, image_size, image_size), float32.

    Raises:
        ImageError: a picture that cannot be opened.
    """
    pixels = [_pixels(open_image(image), image_size) for image in images]
    if not pixels:
        return torch.empty(0, 3, image_size, image_size)
    return torch.from_numpy(np.stack(pixels))


def _pixels(image: Image.Image, side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    resized = _to_rgb(image).resize((side, side), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized, dtype=np.float32) / np.float32(255)
    normed = (scaled - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    return np.ascontiguousarray(normed.transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    """What the original's `convert("RGB")` gives: 16-bit greys saturate, alpha is dropped."""
    # the same pixels, without Pillow's warning about palettes with alpha
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:  # greys with premultiplied alpha
        raise NotAnImageError(f"a picture of mode {image.mode} does not become RGB") from error


class QwenVLImageProcessor(PilBackend):
    """`preprocess` in the shape that transformers' Auto classes and serving engines expect."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  # the base class's protocol
    resample = Image.Resampling.BICUBIC
    image_mean = list(IMAGE_MEAN)  # noqa: RUF012  # as above
    image_std = list(IMAGE_STD)  # noqa: RUF012  # as above
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}  # noqa: RUF012  # as above
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def preprocess(self, images: Any, *_: Any, **kwargs: Any) -> BatchFeature:
        """Make pixel_values of one picture or of any nesting of them.

        Args:
            images: paths, bytes, data URLs, Pillow images, or uint8 arrays (height, width, 3).
            kwargs: `size` and `return_tensors`; everything else is fixed by the checkpoint.
        """
        side = _square(kwargs.get("size") or self.size)
        pixel_values = preprocess(_flat(images), side)
        return BatchFeature(
            data={"pixel_values": pixel_values}, tensor_type=kwargs.get("return_tensors")
        )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open pictures; an address is refused."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        return open_image(image_url_or_urls)

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: dict[str, Any] | None = None
    ) -> int:
        """One, whatever the size: serving engines count pixel_values rows with this."""
        return 1


def _flat(images: Any) -> list[ImageInput]:
    if isinstance(images, list | tuple):
        return [one for image in images for one in _flat(image)]
    if isinstance(images, Tensor):
        images = images.numpy()
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[-1] != 3:
            raise NotAnImageError(
                f"an array must be uint8 (height, width, 3), not {images.dtype} {images.shape}"
            )
        return [Image.fromarray(images)]
    return [images]


def _square(size: Any) -> int:
    size = SizeDict(**size) if isinstance(size, dict) else size
    side = size if isinstance(size, int) else (size.height or size.shortest_edge)
    if not isinstance(side, int) or (not isinstance(size, int) and size.width not in (None, side)):
        raise NotAnImageError(f"the model takes square images, not {size}")
    return side

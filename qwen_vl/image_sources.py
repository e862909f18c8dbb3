"""Open the pictures that callers hand over: a path, bytes, a data URL or a Pillow image.

An address is only fetched under rules that the caller passes, and nothing that a picture says about
itself is believed before its size was checked.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qwen_vl.errors import ImageNotAllowedError, ImageNotFoundError, NotAnImageError
from qwen_vl.image_fetching import HttpRules, fetch_image_bytes

ImageInput = str | Path | bytes | Image.Image

MAX_PIXELS = 64_000_000  # below Pillow's own warning; 256 MB as RGBA
MAX_FILE_BYTES = 128 * 2**20
# a whitelist, because Pillow also reads formats that start other programs (EPS)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that entered a text as an element, and where it stands there.

    `text[start:stop]` is the whole span, `<img>` and `</img>` included; `name` stands between.
    """

    image: ImageInput
    name: str
    start: int
    stop: int


class ImageText(str):
    """A text that knows which of its `<img>` spans are images that the caller handed over.

    What string methods return is plain `str`: it lost its images, and chat refuses its spans.
    """

    __slots__ = ("images",)

    images: tuple[ImageSource, ...]

    def __new__(cls, text: str, images: Sequence[ImageSource] = ()) -> ImageText:
        made = super().__new__(cls, text)
        made.images = tuple(images)
        return made

    def __getnewargs__(self) -> tuple[str, tuple[ImageSource, ...]]:  # type: ignore[override]  # str declares (str,)
        return str(self), self.images


def is_url(image: object) -> bool:
    """Whether this is an http(s) address."""
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def is_data_url(image: object) -> bool:
    """Whether this is a data URL."""
    return isinstance(image, str) and image[:5].lower() == "data:"


def open_image(image: ImageInput, *, http: HttpRules | None = None) -> Image.Image:
    """Open and fully decode one picture; a Pillow image comes back as it is.

    Args:
        image: a path, bytes, a data URL, an address, or a Pillow image.
        http: under which rules an address is fetched; None: not at all.

    Raises:
        ImageNotAllowedError: it is an http(s) address, and there are no rules, or it breaks them.
        ImageFetchError: the address gives no picture within the rules.
        ImageNotFoundError: there is no such file.
        NotAnImageError: it is no picture of a kind we read, or too large.
    """
    if isinstance(image, Image.Image):
        _check_size(image, "image")
        return image
    if isinstance(image, str) and is_url(image):
        if http is None:
            raise ImageNotAllowedError(
                "images are not fetched from the network",
                hint="Allow it with allow_http=True or --allow-http, or download the picture.",
            )
        return _decode(fetch_image_bytes(image, http), "fetched image")
    if isinstance(image, bytes):
        return _decode(image, "image bytes")
    if isinstance(image, str) and is_data_url(image):
        return _decode(_data_url_bytes(image), "data URL")
    return _open_file(image)


def _open_file(image: str | Path) -> Image.Image:
    path = Path(image)
    try:
        if not path.is_file():  # neither folders nor devices
            raise ImageNotFoundError(f"no such image file: {str(image)!r}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except ImageNotFoundError:
        raise
    except (OSError, ValueError) as error:  # unreadable, over-long, or with a NUL byte
        raise ImageNotFoundError(f"no readable image file: {str(image)!r}") from error
    return _decode(data, path.name)


def _data_url_bytes(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise NotAnImageError("a data URL must read data:image/…;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAnImageError("the data URL is not base64") from error


def _decode(data: bytes, name: str) -> Image.Image:
    if len(data) > MAX_FILE_BYTES:
        raise NotAnImageError(f"{name}: over {MAX_FILE_BYTES} bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image, name)
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NotAnImageError(f"{name}: over {MAX_PIXELS} pixels") from error
    except NotAnImageError:
        raise
    # what Pillow's decoders raise on damaged files
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise NotAnImageError(f"{name}: not a readable image") from error
    return image


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise NotAnImageError(f"{name}: {width}x{height} is over {MAX_PIXELS} pixels")

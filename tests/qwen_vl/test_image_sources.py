import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_vl.errors import ImageNotAllowedError, ImageNotFoundError, NotAnImageError
from qwen_vl.image_sources import MAX_PIXELS, open_image


def png(size: tuple[int, int] = (3, 2)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixels."""
    head = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    checked = struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 0) + b"IDAT\x35\xaf\x06\x1e"


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "图片 one.png"
    path.write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()

    opened = [open_image(source) for source in (path, str(path), png(), url)]

    assert {image.tobytes() for image in opened} == {b"\xff\x00\x00" * 6}
    assert open_image(opened[0]) is opened[0]


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"root:x:0:0:",
        png((90, 90))[:60],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "data:text/plain,hello",
        "data:image/png;base64,%%%",
        "data:image/png;base64,aGVsbG8=",
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(source: Any) -> None:
    with pytest.raises(NotAnImageError) as caught:
        open_image(source)

    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_formats_outside_the_whitelist_are_not_tried() -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PCX")

    with pytest.raises(NotAnImageError):
        open_image(file.getvalue())


@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 12_000, 60_000])
def test_a_picture_that_would_fill_the_memory_is_refused_unread(side: int) -> None:
    with pytest.raises(NotAnImageError, match="pixels"):
        open_image(png_header(side, side))


@pytest.mark.parametrize("path", ["", ".", "missing.png", "a\0b", "x" * 5000])
def test_a_path_without_a_file_is_not_found(path: str) -> None:
    with pytest.raises(ImageNotFoundError):
        open_image(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(ImageNotFoundError):
        open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.png?token=s3cret", "HTTPS://x/y.png"])
def test_addresses_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ImageNotAllowedError) as caught:
        open_image(url)

    assert "s3cret" not in str(caught.value)

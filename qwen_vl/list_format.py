"""Qwen-VL's list format: elements to tagged text, and tagged text back to elements.

Two helper revisions of 2023 differ in one space: `Picture 1:<img>` (r1), `Picture 1: <img>` (r2).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from PIL import Image

from qwen_vl.errors import MalformedTextError, UnsupportedElementError
from qwen_vl.image_sources import ImageInput, ImageSource, ImageText, is_data_url
from qwen_vl.image_spans import UNCLOSED
from qwen_vl.ranks import END_OF_TEXT, IMAGE_TAGS, IMG_END, IMG_START, SPECIAL_TOKENS

Style = Literal["r1", "r2"]
_LABEL: dict[Style, str] = {"r1": "Picture {}:", "r2": "Picture {}: "}
_KINDS = ("image", "ref", "box", "quad")
_TAG = {"image": "img", "ref": "ref", "box": "box", "quad": "quad"}
_OPENING = re.compile("|".join(f"(?P<{kind}><{_TAG[kind]}>)" for kind in _KINDS))
_CONTROL = re.compile(
    "|".join(
        re.escape(token)
        for token in SPECIAL_TOKENS
        if token not in IMAGE_TAGS and token != END_OF_TEXT
    )
)


class TextElement(TypedDict, total=False):
    """One part of a tagged text: exactly one key. These dicts are the published format."""

    text: str
    image: str
    ref: str
    box: str
    quad: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of plain text (kind "text"), or what stands between one pair of tags."""

    kind: str
    content: str


def from_list_format(
    elements: Iterable[Mapping[str, Any]], *, style: Style = "r2", name_limit: int = 255
) -> ImageText:
    """Write elements as one text; images are numbered from 1 and end with a newline.

    A path given as `str` is written between the tags; a `Path`, bytes, a data URL or a Pillow
    image gets a neutral name there, of at most `name_limit` bytes. Every image is kept in
    `.images`, whatever stands in the text.

    Raises:
        UnsupportedElementError: an element has no known key, or its value is of the wrong kind.
    """
    text = ""
    images: list[ImageSource] = []
    for element in elements:
        if not isinstance(element, Mapping):
            raise UnsupportedElementError(f"Unsupport element: {element!r}")
        if "image" in element:
            text += _LABEL[style].format(len(images) + 1)
            source = _source(element["image"], len(images) + 1, len(text), name_limit)
            images.append(source)
            text += f"{IMG_START}{source.name}{IMG_END}\n"
        elif "text" in element:
            text += _string(element["text"])
        elif "box" in element:
            text += _reference(element) + _boxes(element["box"])
        else:
            raise UnsupportedElementError(f"Unsupport element: {dict(element)!r}")
    return ImageText(text, images)


def _source(image: object, number: int, start: int, name_limit: int) -> ImageSource:
    if not isinstance(image, ImageInput):
        raise UnsupportedElementError(f"an image cannot be a {type(image).__name__}")
    name = _image_name(image, number, name_limit)
    return ImageSource(image, name, start, start + len(IMG_START + name + IMG_END))


def _image_name(image: ImageInput, number: int, limit: int) -> str:
    if isinstance(image, (Path, bytes, Image.Image)) or is_data_url(image):
        return neutral_name(number, limit)
    return image


def neutral_name(number: int, limit: int) -> str:
    """What stands between the tags of an image without a path, in at most `limit` bytes."""
    return next(name for name in (f"image-{number}", str(number), "") if len(name) <= limit)


def _reference(element: Mapping[str, Any]) -> str:
    return f"<ref>{_string(element['ref'])}</ref>" if "ref" in element else ""


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise UnsupportedElementError(f"text cannot be a {type(value).__name__}")
    return str(value)


def _boxes(boxes: Iterable[Sequence[float]]) -> str:
    try:
        corners = [(box[0], box[1], box[2], box[3]) for box in boxes]
        # %d cuts fractions off and refuses strings; format() does neither
        return "".join("<box>(%d,%d),(%d,%d)</box>" % box for box in corners)  # noqa: UP031
    except (TypeError, IndexError, KeyError, ValueError, OverflowError) as error:
        raise UnsupportedElementError("a box element takes a list of [x1, y1, x2, y2]") from error


def to_list_format(text: str) -> list[TextElement]:
    """Split a tagged text into elements; stray closing tags stay in the text.

    Raises:
        MalformedTextError: a tag is never closed, or a control token stands in the text.
    """
    elements: list[TextElement] = []
    for piece in split_tags(text):
        element: TextElement = {}
        element[piece.kind] = piece.content  # type: ignore[literal-required]  # kinds are the keys
        elements.append(element)
    return elements


def split_tags(text: str) -> list[Piece]:
    """The typed form of `to_list_format`."""
    text = unicodedata.normalize("NFC", text)
    control = _CONTROL.search(text)
    if control:
        raise MalformedTextError(f"the text holds the control token {control.group()}")
    # what the byte-pair encoder does: lone surrogates become U+FFFD
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return list(_pieces(text))


def _pieces(text: str) -> Iterable[Piece]:
    position = 0
    while opening := _OPENING.search(text, position):
        kind = str(opening.lastgroup)
        closing = text.find(f"</{_TAG[kind]}>", opening.end())
        if closing < 0:
            raise MalformedTextError(UNCLOSED)
        if opening.start() > position:
            yield Piece("text", text[position : opening.start()])
        yield Piece(kind, text[opening.end() : closing])
        position = closing + len(f"</{_TAG[kind]}>")
    if position < len(text):
        yield Piece("text", text[position:])

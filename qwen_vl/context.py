"""Lay a conversation out as ChatML: which turns fit, what they encode to, which images they hold.

Pieces are encoded one by one (role, newline, content), never jointly: that is what the model was
trained on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_vl.errors import ImageNotAllowedError
from qwen_vl.image_sources import ImageSource, ImageText
from qwen_vl.image_spans import span_ids
from qwen_vl.image_text_tokenizer import ImageTextTokenizer
from qwen_vl.list_format import neutral_name
from qwen_vl.ranks import GROUNDING_TAGS, IM_END, IM_START, IMAGE_TAGS, IMG_END, IMG_START

Role = Literal["system", "user", "assistant"]
Query = str | Sequence[Mapping[str, Any]]
Turn = tuple[Query, str | None]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the conversation: its text, its ids, and the images in it, in order."""

    text: str
    ids: tuple[int, ...]
    images: tuple[ImageSource, ...] = ()

    def __add__(self, other: Part) -> Part:
        return Part(self.text + other.text, self.ids + other.ids, self.images + other.images)


Encoder = Callable[[ImageTextTokenizer, Role, str], Part]


def encode_content(tokenizer: ImageTextTokenizer, role: Role, content: str) -> Part:
    """Encode as in 2023: the nine image, ref, box and quad tags count, control tokens do not."""
    return Part(content, tuple(tokenizer.encode(content, allowed_special=IMAGE_TAGS)))


def encode_with_paths(tokenizer: ImageTextTokenizer, role: Role, content: str) -> Part:
    """As in 2023, and every `<img>path</img>` in the text is an image to be opened."""
    part = encode_content(tokenizer, role, content)
    return Part(part.text, part.ids, tuple(images_in(content)))


def encode_guarded(tokenizer: ImageTextTokenizer, role: Role, content: str) -> Part:
    """Encode images that the caller handed over; text alone never becomes one.

    A lone `</img>` or `<imgpad>` stays plain text, so that it cannot shift another image's span;
    in what the model once answered, so does `<img>`.

    Raises:
        ImageNotAllowedError: the system text or a query holds an `<img>` of its own.
    """
    images = content.images if isinstance(content, ImageText) else ()
    ids: list[int] = []
    position = 0
    for number, image in enumerate(images, start=1):
        ids += _text_ids(tokenizer, role, content[position : image.start])
        ids += span_ids(_span_name(tokenizer, image, number), tokenizer.spans)
        position = image.stop
    ids += _text_ids(tokenizer, role, content[position:])
    return Part(content, tuple(ids), images)


def _text_ids(tokenizer: ImageTextTokenizer, role: Role, text: str) -> list[int]:
    if role != "assistant" and IMG_START in unicodedata.normalize("NFC", text):
        raise ImageNotAllowedError(f"the {role} text holds an {IMG_START} of its own")
    return tokenizer.encode(text, allowed_special=GROUNDING_TAGS)


def _span_name(tokenizer: ImageTextTokenizer, image: ImageSource, number: int) -> bytes:
    name = unicodedata.normalize("NFC", image.name).encode("utf-8", "replace")
    if len(name) < tokenizer.n_image_tokens:
        return name
    # the model never reads what stands between the tags, so a long path need not fail
    return neutral_name(number, tokenizer.n_image_tokens - 1).encode()


def images_in(content: str) -> list[ImageSource]:
    """Every `<img>path</img>` of a text as an image to be opened; known ones as handed over."""
    known = {image.start: image for image in getattr(content, "images", ())}
    found = []
    start = content.find(IMG_START)
    while start >= 0:
        inner = start + len(IMG_START)
        end = content.find(IMG_END, inner)
        path = unicodedata.normalize("NFC", content[inner:end])
        found.append(known.get(start) or ImageSource(path, path, start, end + len(IMG_END)))
        start = content.find(IMG_START, end)
    return found


def as_text(tokenizer: ImageTextTokenizer, query: Query) -> str:
    """A query as text; elements are written with `from_list_format`."""
    return query if isinstance(query, str) else tokenizer.from_list_format(query)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a conversation becomes one prompt.

    `max_window_size` bounds system text and history, strictly; the query is not counted.
    """

    tokenizer: ImageTextTokenizer
    encoder: Encoder
    max_window_size: int = 6144

    def prompt(self, query: Query, history: Sequence[Turn], system: str) -> Part:
        """The whole prompt, up to where the assistant speaks."""
        head = self.block("system", system)
        past = Part("", ())
        for turn in reversed(history):
            candidate = self._turn(turn) + past
            if len(head.ids) + len(candidate.ids) >= self.max_window_size:
                break
            past = candidate
        newline = self.plain("\n")
        return head + past + newline + self.block("user", query) + newline + self.opening()

    def _turn(self, turn: Turn) -> Part:
        query, response = turn
        newline = self.plain("\n")
        asked = newline + self.block("user", query) + newline
        # no response: the newline stays, and the next turn brings a second one
        return asked if response is None else asked + self.block("assistant", response)

    def opening(self) -> Part:
        """Where the assistant speaks."""
        return self.control(IM_START) + self.plain("assistant") + self.plain("\n")

    def block(self, role: Role, content: Query) -> Part:
        """One message between its control tokens."""
        text = as_text(self.tokenizer, content)
        inner = self.plain(role) + self.plain("\n") + self.encoder(self.tokenizer, role, text)
        return self.control(IM_START) + inner + self.control(IM_END)

    def plain(self, text: str) -> Part:
        """A role or a newline: text of our own."""
        return Part(text, tuple(self.tokenizer.encode(text)))

    def control(self, token: str) -> Part:
        """A control token."""
        return Part(token, (self.tokenizer.special_ids[token],))

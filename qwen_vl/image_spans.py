"""The ids of one image: <img>, the bytes of its path, padding, </img>.

Between the tags an id IS a byte of the path (not the token of that byte), and <imgpad> fills the
rest, so that every image takes the same number of ids. The model only looks for the two tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qwen_vl.errors import (
    ImagePathTooLongError,
    MalformedTextError,
    TokenInImagePathError,
    UndecodableImagePathError,
)

UNCLOSED = "Unclosed image token"


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Ids of the tags, and how many ids stand between them."""

    start_id: int
    end_id: int
    pad_id: int
    length: int


@dataclass(frozen=True, slots=True)
class Span:
    """ids[start] is <img>, ids[stop - 1] is its </img>."""

    start: int
    stop: int


def span_ids(path: bytes, layout: SpanLayout) -> list[int]:
    """All ids of one image, tags included.

    Raises:
        ImagePathTooLongError: the path has more bytes than the span has places.
    """
    if len(path) > layout.length:
        raise ImagePathTooLongError("The content in <img>..</img> is too long")
    padding = [layout.pad_id] * (layout.length - len(path))
    return [layout.start_id, *path, *padding, layout.end_id]


def find_spans(ids: Sequence[int], layout: SpanLayout) -> Iterator[Span]:
    """Yield spans from left to right; a lone </img> is none.

    Raises:
        MalformedTextError: an <img> is never closed.
    """
    position = 0
    while (start := _index(ids, layout.start_id, position)) is not None:
        end = _index(ids, layout.end_id, start + 1)
        if end is None:
            raise MalformedTextError(UNCLOSED)
        yield Span(start, end + 1)
        position = end + 1


def _index(ids: Sequence[int], wanted: int, start: int) -> int | None:
    try:
        return ids.index(wanted, start)
    except ValueError:
        return None


def encode_spans(
    ids: list[int], layout: SpanLayout, token_bytes: Callable[[int], bytes | str]
) -> list[int]:
    """Replace the tokens between each <img> and </img> by the bytes they stand for.

    Args:
        ids: as the byte-pair encoding gave them; not modified.
        layout: the tags and the length of a span.
        token_bytes: an id's token, bytes for ordinary ones and str for special ones.

    Raises:
        MalformedTextError: a span is unclosed, too long, or holds a special token.
    """
    out: list[int] = []
    position = 0
    for span in find_spans(ids, layout):
        tokens = [token_bytes(i) for i in ids[span.start + 1 : span.stop - 1]]
        path = b"".join(token for token in tokens if isinstance(token, bytes))
        special = next((token for token in tokens if isinstance(token, str)), None)
        if special is not None:
            raise TokenInImagePathError(f"{special} stands between <img> and </img>")
        out += ids[position : span.start] + span_ids(path, layout)
        position = span.stop
    return out + ids[position:]


def span_path(inner: Sequence[int], layout: SpanLayout) -> str:
    """The path that the ids between <img> and </img> spell.

    Raises:
        MalformedTextError: there is no padding, an id is no byte, or the bytes are not UTF-8.
    """
    end = _index(inner, layout.pad_id, 0)
    if end is None:
        raise MalformedTextError("an image span has no <imgpad> before its </img>")
    if any(not 0 <= i < 256 for i in inner[:end]):
        raise MalformedTextError("an image span holds an id that is no byte")
    try:
        return bytes(inner[:end]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UndecodableImagePathError(error) from error

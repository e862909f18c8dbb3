"""Small pieces of HTML: escaping, bilingual labels, thumbnails, boxes, bars, marked answers."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from verification.chinese import translated
from verification.evidence import Answer
from verification.probes import Box

_THUMBNAIL = 160  # pixels, longer side
_GRID = 1000


def escaped(text: str) -> str:
    """Make text from outside harmless, and its control characters visible."""
    return html.escape(visible(text), quote=True)


def visible(text: str) -> str:
    """Show control characters, and disarm what could reorder the text around it."""
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures: ␊ for a line feed
    # direction marks could reorder what stands around them
    hidden = 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return "\ufffd" if hidden or 0xD800 <= code < 0xE000 else char


def both(english: str, chinese: str) -> str:
    """One label in both languages; the page shows one of them. Arguments are trusted HTML."""
    return (
        f'<span class="en" lang="en">{english}</span><span class="zh" lang="zh-CN">{chinese}</span>'
    )


def said(text: str) -> str:
    """Show what a finding, a limit or a fault says, in both languages; names are in neither."""
    chinese = translated(text)
    if chinese is None:
        return f'<span lang="en">{escaped(text)}</span>'
    return verbatim(text) if chinese == text else both(escaped(text), escaped(chinese))


def verbatim(text: str) -> str:
    """Show what is the same in every language: names, digests, words of a person."""
    return f'<span translate="no">{escaped(text)}</span>'


def spoken(english: str, chinese: str) -> str:
    """One label for those who hear the page: an attribute has no language of its own."""
    return f"{english} / {chinese}"


def thumbnail(image: Image.Image) -> str:
    """Return an image as a data URI, WebP, at most 160 pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


@dataclass(frozen=True, slots=True)
class DrawnBox:
    """A box over a picture: whose it is (a CSS class), where, and what it is said to be."""

    kind: str
    box: Box
    label: str = ""


def figure(image: Image.Image, boxes: Sequence[DrawnBox]) -> str:
    """Show an image with boxes over it.

    Labels may be in any script, so they stand in the page and not in the picture; numbers, which
    every font has, tie them together.
    """
    names = list(dict.fromkeys(box.label for box in boxes if box.label))
    drawn = "".join(_rectangle(box, names) for box in boxes)
    overlay = (
        f'<svg viewBox="0 0 {_GRID} {_GRID}" preserveAspectRatio="none" aria-hidden="true">'
        f"{drawn}</svg>"
    )
    listed = "".join(f"<li>{escaped(name)}</li>" for name in names)
    caption = f"<figcaption><ol>{listed}</ol></figcaption>" if names else ""
    return (
        f'<figure><div class="picture"><img alt="" loading="lazy" src="{thumbnail(image)}">'
        f"{overlay if boxes else ''}</div>{caption}</figure>"
    )


def _rectangle(drawn: DrawnBox, names: Sequence[str]) -> str:
    x1, y1, x2, y2 = drawn.box
    # a box without area still has to be seen
    width, height = max(x2 - x1, 8), max(y2 - y1, 8)
    rect = f'<rect class="box {drawn.kind}" x="{x1}" y="{y1}" width="{width}" height="{height}"/>'
    if not drawn.label or drawn.kind != "ref":
        return rect
    number = names.index(drawn.label) + 1
    x, y = min(x1 + 12, _GRID - 60), max(y1 + 78, 78)
    return f'{rect}<text class="tag" x="{x}" y="{y}">{number}</text>'


def bars(values: Sequence[float], top: float, *, name: str, marked: int = -1) -> str:
    """Draw one thin bar per value; a bar as high as the drawing is `top`, one may be marked."""
    rects = "".join(
        f'<rect{" class=first" if i == marked else ""} x="{i * 10 + 1}" y="{100 - h:.1f}" '
        f'width="8" height="{h:.1f}"><title>{i + 1}: {value:.4g}</title></rect>'
        for i, value in enumerate(values)
        for h in [max(1.5, 100 * min(value / top, 1.0)) if top > 0 else 1.5]
    )
    return (
        f'<svg class="spark" viewBox="0 0 {max(len(values), 16) * 10} 100" '
        f'preserveAspectRatio="none" role="img" aria-label="{escaped(name)}">{rects}</svg>'
    )


def marked_token(answer: Answer, at: int) -> str:
    """Show an answer with one token marked; a token without text is marked as the end."""
    if at >= len(answer.ids):
        return escaped(answer.text) or "∅"
    start, end = answer.token_span(at)
    # a token may be part of a character: then the character is marked
    end = max(end, min(start + 1, len(answer.text)))
    before, token, after = answer.text[:start], answer.text[start:end], answer.text[end:]
    shown = escaped(token) if token.strip() else escaped(token.replace(" ", "␣")) or "∎"
    rest = f'<span class="after">{escaped(after)}</span>' if after else ""
    return f"{escaped(before)}<mark>{shown}</mark>{rest}"

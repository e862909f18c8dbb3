"""Small pieces of HTML: escaping, bilingual labels, thumbnails, boxes, bars."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from verification.probes import Box

_THUMBNAIL = 160  # pixels, longer side
_GRID = 1000


def escaped(text: str) -> str:
    """Make text from outside harmless, and its control characters visible."""
    return html.escape("".join(_visible(char) for char in text), quote=True)


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


def thumbnail(image: Image.Image) -> str:
    """Return an image as a data URI, WebP, at most 160 pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def figure(image: Image.Image, boxes: Sequence[tuple[str, Box]]) -> str:
    """Show an image with boxes over it; each is (CSS class, box in thousandths)."""
    drawn = "".join(_rectangle(name, box) for name, box in boxes)
    overlay = (
        f'<svg viewBox="0 0 {_GRID} {_GRID}" preserveAspectRatio="none" aria-hidden="true">'
        f"{drawn}</svg>"
    )
    return f'<figure><img alt="" src="{thumbnail(image)}">{overlay if boxes else ""}</figure>'


def _rectangle(name: str, box: Box) -> str:
    x1, y1, x2, y2 = box
    # a box without area still has to be seen
    width, height = max(x2 - x1, 8), max(y2 - y1, 8)
    return f'<rect class="box {name}" x="{x1}" y="{y1}" width="{width}" height="{height}"/>'


def bars(values: Sequence[float], top: float, *, name: str) -> str:
    """Draw one thin bar per value; a bar as high as the drawing is `top`."""
    rects = "".join(
        f'<rect x="{i * 10 + 1}" y="{100 - h:.1f}" width="8" height="{h:.1f}">'
        f"<title>{i + 1}: {value:.4g}</title></rect>"
        for i, value in enumerate(values)
        for h in [max(1.5, 100 * min(value / top, 1.0)) if top > 0 else 1.5]
    )
    return (
        f'<svg class="spark" viewBox="0 0 {max(len(values), 16) * 10} 100" '
        f'preserveAspectRatio="none" role="img" aria-label="{escaped(name)}">{rects}</svg>'
    )


def marked_difference(text: str, other: str) -> str:
    """Show `text` with the first character that differs from `other` marked."""
    same = next(
        (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
        min(len(text), len(other)),
    )
    if text == other:
        return escaped(text) or "∅"
    # a text that just ends where the other goes on has nothing to mark but its end
    first = escaped(text[same]) if same < len(text) else "∎"
    rest = escaped(text[same + 1 :])
    return f'{escaped(text[:same])}<mark>{first}</mark><span class="after">{rest}</span>'

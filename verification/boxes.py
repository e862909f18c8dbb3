"""Boxes as the gate compares them: overlap, and the grammar that makes any model give one.

A model asked `<ref>…</ref><box>` is held to `(x1,y1),(x2,y2)</box>`: at each step only tokens that
keep the text inside that grammar may be chosen. So a badly quantized model gives a bad box, not
a missing one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from verification.probes import Box

# every prefix of "(x1,y1),(x2,y2)", with at most three digits a number
_NUMBER = "[0-9]{1,3}"
_STAGES = (r"\(", _NUMBER, ",", _NUMBER, r"\)", ",", r"\(", _NUMBER, ",", _NUMBER, r"\)")
_WHOLE = re.compile("".join(_STAGES))
_READ = re.compile(r"\(([0-9]{1,3}),([0-9]{1,3})\),\(([0-9]{1,3}),([0-9]{1,3})\)")
_LONGEST = len("(999,999),(999,999)")


def allowed_box_text(text: str) -> bool:
    """Whether `text` can still become a box."""
    return _prefix.fullmatch(text) is not None


def is_whole_box(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None


def _prefix_pattern() -> str:
    # (a(b(c)?)?)? matches every prefix of abc; a number of one digit is a prefix of itself already
    pattern = ""
    for stage in reversed(_STAGES):
        pattern = f"(?:{stage}{pattern})?"
    return pattern


_prefix = re.compile(_prefix_pattern())


def read_boxes(text: str) -> list[Box]:
    """Find every box in a text, in the model's own notation; corners are put in order."""
    found = []
    for match in _READ.finditer(text):
        x1, y1, x2, y2 = (int(part) for part in match.groups())
        found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union; two equal boxes give 1 even when they have no area."""
    if a == b:
        return 1.0
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = _area(a) + _area(b) - width * height
    return width * height / union if union else 0.0


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def grammar_tokens(tokens: Sequence[bytes]) -> dict[int, str]:
    """The ids whose text can occur inside a box at all; the grammar picks among these."""
    characters = set(b"0123456789(),")
    return {
        index: token.decode("ascii")
        for index, token in enumerate(tokens)
        if 0 < len(token) <= _LONGEST and characters.issuperset(token)
    }

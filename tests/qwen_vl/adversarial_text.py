"""Strings that are hard to cut into tokens, drawn from a seed."""

import random
import unicodedata
from collections.abc import Iterator
from typing import Literal

from qwen_vl.ranks import SPECIAL_TOKENS

SEED = 20231123
_SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x1100, 0x11FF),
    (0x1780, 0x17FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2100, 0x214F), (0x2150, 0x218F),
    (0x2E80, 0x2FDF), (0x3000, 0x30FF), (0x3130, 0x318F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x10330, 0x1034F),
    (0x1D100, 0x1D7FF), (0x1E900, 0x1E95F), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF),
    (0x2F800, 0x2FA1F), (0xE0000, 0xE01EF),
)  # fmt: skip
_SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2000\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
_CODE = (
    "def f(x):\n\treturn x**2  # note\n", "for (int i=0;i<n;++i){a[i]^=0x1F;}\r\n", "</div>\n\n\n",
    "SELECT * FROM t WHERE a='b';", "\\frac{a}{b}", "x = 1_000.5e-3", "    " * 3, "-" * 17,
    "{{%", "->",
)  # fmt: skip
_WORDS = (
    "don't", "WE'LL", "I'M", "l’été", "'ſ", "it'S", "naïve", "e\u0301te\u0301", "你好，世界",
    "ｆｕｌｌ", "ﬁ",
    "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳🇫🇷", "한국어", "각", "Ω", "Å", "क्षि", "น้ำ", "مرحبا",
    "שָׁלוֹם", "1234567890",
    "３４５", "½²③", "Ⅷ", "\u0338", "a\u0323\u0307", "\x00", "\x7f", "\ud800", "\udfff",
)  # fmt: skip


def _near_special(draw: random.Random) -> str:
    token = draw.choice(SPECIAL_TOKENS)
    broken = (token, token[:-1], token[1:], token.upper(), token + "\u0338", f"<{token}>")
    # inside an image only a path may stand, so whole image tags are left to other tests
    return draw.choice(broken) if "img" not in token else token[:-1]


def _piece(draw: random.Random) -> str:
    kind = draw.randrange(7)
    if kind == 0:
        low, high = draw.choice(_SCRIPTS)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 8)))
    if kind == 1:
        return "".join(draw.choice(_SPACES) for _ in range(draw.randint(1, 5)))
    if kind == 2:
        return chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000))))
    if kind == 3:
        return draw.choice(_CODE)
    if kind == 4:
        return _near_special(draw)
    if kind == 5:
        return str(draw.randrange(10 ** draw.randint(1, 12)))
    return draw.choice(_WORDS)


def adversarial_texts(count: int, seed: int = SEED) -> Iterator[str]:
    """Mixed scripts, marks, emoji, white space, code, digits and nearly special tokens."""
    draw = random.Random(seed)  # a seed is the point
    for _ in range(count):
        text = "".join(_piece(draw) for _ in range(draw.randint(1, 9)))
        form: Literal["NFD", "NFKC"] | None = draw.choice((None, None, "NFD", "NFKC"))
        yield unicodedata.normalize(form, text) if form else text

"""Which revision of the 2023 tokenizer helper a snapshot brings: one space tells them apart.

`Picture 1:<img>` (r1) and `Picture 1: <img>` (r2) are other token ids before every image. A
snapshot says which it means by `style` in tokenizer_config.json, by its chat template, or by the
tokenizer code of 2023 that lies beside it, which is read here and never run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qwen_vl.list_format import Style

_DEFAULT: Style = "r2"
_CODE = re.compile(r"Picture \{\w+\}:( ?)['\"]")
_TEMPLATE = re.compile(r"Picture '[^\n]{0,60}?':( ?)'")
_MOST = 1_000_000


def helper_revision(folder: Path) -> Style:
    """Read it from the folder's files; r2, as published, where none of them says."""
    config = _object(folder / "tokenizer_config.json")
    style = config.get("style")
    if style in ("r1", "r2"):
        return "r1" if style == "r1" else "r2"
    template = config.get("chat_template")
    texts = (
        (_text(folder / "chat_template.jinja"), _TEMPLATE),
        (template if isinstance(template, str) else "", _TEMPLATE),
        (_text(folder / "tokenization_qwen.py"), _CODE),
    )
    for text, pattern in texts:
        found = pattern.search(text)
        if found is not None:
            return "r2" if found[1] else "r1"
    return _DEFAULT


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as source:
            return source.read(_MOST).decode("utf-8", errors="replace")
    except OSError:
        return ""

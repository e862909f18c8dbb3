"""What the text tests share: rank files, and the recorded results of the 2023 code.

The recorded results keep the type of an error, not its words.
"""

import base64
import builtins
import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.list_format import Style
from qwen_vl.tokenization import QwenVLTokenizer

ASSETS = Path(__file__).parent.parent / "assets" / "qwen_vl"
PUBLISHED_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def golden(name: str) -> Any:
    return json.loads((ASSETS / f"{name}.json").read_text())


def published_rank_file() -> Path:
    """The rank file of the published models, which the dashscope package ships too."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("dashscope, which ships qwen.tiktoken, is not installed")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


@cache
def published_tokenizer(style: Style = "r2") -> QwenVLTokenizer:
    return QwenVLTokenizer(published_rank_file(), style=style)


def small_ranks() -> list[bytes]:
    """The 256 bytes, and two merges."""
    return [*(bytes([byte]) for byte in range(256)), b"he", b"hel"]


def write_rank_file(path: Path, tokens: list[bytes], end: bytes = b"\n") -> Path:
    lines = (base64.b64encode(t) + b" %d" % rank for rank, t in enumerate(tokens))
    path.write_bytes(end.join(lines) + end)
    return path


def agrees(result: Callable[[], object], recorded: Mapping[str, Any]) -> bool:
    """Whether a call gives what was recorded, or raises an error of the recorded type."""
    if "error_type" in recorded:
        with pytest.raises(getattr(builtins, recorded["error_type"])):
            result()
        return True
    return bool(json.loads(json.dumps(result())) == recorded["ok"])

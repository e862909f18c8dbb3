"""What the terminal chat can be told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.options import option


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Flags of `python -m qwen_vl.chat`."""

    folder: Path = option("folder of a Chat model, of either layout", flag="")
    device: str = option("where the model runs: auto, cpu, cuda, cuda:1, …", default="auto")
    dtype: str = option(
        "compute dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16")
    )
    system: str = option("the system text", default="You are a helpful assistant.")
    max_new_tokens: int = option("longest answer, in tokens", default=512)
    greedy: bool = option("take the likeliest token instead of drawing one", default=False)
    seed: int | None = option("seed for drawing", default=None)
    allow_http: bool = option("let /image fetch an http(s) address", default=False)
    boxes: Path = option("folder for the pictures that /box writes", default=Path())

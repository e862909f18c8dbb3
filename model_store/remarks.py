"""What is odd about a checkpoint's index and config.json, though its tensors can be read.

Published checkpoints do have wrong totals and dtypes in their JSON files, and load: no byte depends
on them. Who rewrites one has to say that it was meant, so that nobody is surprised by the result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.canonical import parse_json
from model_store.checkpoint import Checkpoint
from model_store.errors import CheckpointError, StoreError

_MAX_CONFIG = 10_000_000
_ELSEWHERE = re.compile(r"[^/\s]+/[^/\s]+--")
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_FLOATS = frozenset(_DTYPES.values())


def remarks(checkpoint: Checkpoint, folder: Path) -> tuple[str, ...]:
    """Compare an open checkpoint with its index and the folder's config.json.

    Raises:
        CheckpointError: a config.json that is too large, nested too deeply or not an object.
    """
    config = _config(folder / "config.json")
    found = [_total(checkpoint), _dtype(checkpoint, config), *_remote_code(config)]
    return tuple(remark for remark in found if remark)


def _config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_CONFIG:
        raise CheckpointError(f"{path} is too large for a configuration")
    try:
        value = parse_json(path.read_bytes(), name=str(path))
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return value


def _total(checkpoint: Checkpoint) -> str:
    promised = checkpoint.promised_size
    actual = sum(checkpoint.info(name).nbytes for name in checkpoint.names())
    if promised is None or promised == actual:
        return ""
    return f"the index says total_size {promised}; the tensors take {actual} bytes"


def _dtype(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str:
    told = config.get("dtype", config.get("torch_dtype"))
    wanted = _DTYPES.get(told.removeprefix("torch.")) if isinstance(told, str) else None
    held: Counter[str] = Counter()
    for name in checkpoint.names():
        info = checkpoint.info(name)
        if info.dtype in _FLOATS:
            held[info.dtype] += info.nbytes
    if wanted is None or not held or wanted in held:
        return ""
    return f"config.json says {told}; the tensors are {held.most_common(1)[0][0]}"


def _remote_code(config: Mapping[str, Any]) -> list[str]:
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return []
    named = [
        text
        for value in auto_map.values()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and _ELSEWHERE.match(text)
    ]
    return [f"config.json takes code from another repository: {text[:200]!r}" for text in named]

"""Calibration samples for a text model: the user's texts, or the drawn scenes' sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from model_store.canonical import canonical_digest, parse_json
from model_store.errors import StoreError
from quantization.batches import CalibrationInput
from quantization.calibration import CalibrationSet, filled_lines, pick
from quantization.errors import CalibrationError
from quantization.options import BUILTIN, GptqConfig
from qwen_vl import scenes

_SCENES = 24  # drawn dialogues in one sample
_HINT = 'One JSON object a line: {"text": "…"}, {"conversations": […]} or {"input_ids": [1, …]}.'


def text_calibration(folder: Path, config: GptqConfig) -> CalibrationSet:
    """Make the set that the options ask for, with the folder's own tokenizer.

    Raises:
        CalibrationError: the file is missing, empty or malformed; a sample is too long; or there
            is no tokenizer and the samples are no ids.
    """
    if config.calibration == BUILTIN:
        lines: list[Any] = [{"text": text} for text in _drawn(config)]
    else:
        path = Path(config.calibration).expanduser()
        known = [_line(*one) for one in filled_lines(path, nothing="no text", hint=_HINT)]
        lines = pick(known, config.samples, config.seed)
    inputs = tuple(_inputs(folder, lines, config))
    origin = "builtin" if config.calibration == BUILTIN else "texts"
    return CalibrationSet(inputs, origin, canonical_digest(lines))


def _drawn(config: GptqConfig) -> Iterator[str]:
    drawn = list(scenes.samples(config.seed, config.samples * _SCENES, split="calibration"))
    for start in range(0, len(drawn), _SCENES):
        yield "\n".join(_told(one) for one in drawn[start : start + _SCENES])


def _told(sample: scenes.Sample) -> str:
    turns = [part for turn in sample.history for part in turn]
    return "\n".join([*map(_words, turns), _words(sample.elements), sample.answer])


def _words(said: Any) -> str:
    """The text of a turn: a string, or elements of which some are texts."""
    return said if isinstance(said, str) else " ".join(e["text"] for e in said if "text" in e)


def _line(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = parse_json(line, name=place)
    except StoreError as error:
        raise CalibrationError(str(error), hint=_HINT) from error
    turns = value.get("conversations") if isinstance(value, dict) else None
    if isinstance(turns, list) and turns and all(_is_said(turn) for turn in turns):
        return {"text": "\n".join(turn["value"] for turn in turns)}
    text = value.get("text") if isinstance(value, dict) else None
    if isinstance(text, str) and text:
        return {"text": text}
    ids = value.get("input_ids") if isinstance(value, dict) else None
    if isinstance(ids, list) and ids and all(type(one) is int and one >= 0 for one in ids):
        return {"input_ids": ids}
    raise CalibrationError(f"{place}: no text, no conversation of texts, no ids", hint=_HINT)


def _is_said(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("value"), str)


def _inputs(
    folder: Path, lines: list[dict[str, Any]], config: GptqConfig
) -> Iterator[CalibrationInput]:
    tokenizer: Any = None
    for number, line in enumerate(lines, start=1):
        ids = line.get("input_ids")
        if ids is None:
            tokenizer = tokenizer or _tokenizer(folder)
            # texts are cut, not refused: any part of a text is a text
            ids = tokenizer(line["text"])["input_ids"][: config.max_tokens]
        if not 0 < len(ids) <= config.max_tokens:
            raise CalibrationError(
                f"calibration sample {number} has {len(ids)} tokens, at most {config.max_tokens} "
                "are accepted",
                hint="Shorten it, or raise --max-tokens; memory grows with the longest sample.",
            )
        yield CalibrationInput(torch.tensor(ids, dtype=torch.int64))


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise CalibrationError(
            f"{folder} has no tokenizer that can be used: {line}",
            hint='Give ids instead of texts: {"input_ids": [1, …]}.',
        ) from error

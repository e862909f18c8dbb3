"""The files beside Qwen-VL's weights, in both layouts: config, tokenizer and processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conversion.bundle import (
    BUNDLE,
    MODEL_AUTO_MAP,
    PROCESSOR_AUTO_MAP,
    TOKENIZER_AUTO_MAP,
    bundle_source,
)
from conversion.errors import ConversionError, MissingFileError
from conversion.layouts import read_json_file
from conversion.opened import OpenedSnapshot
from model_store.paths import inside
from qwen_vl.config_map import to_native_config, to_original_config
from qwen_vl.helper_revision import helper_revision
from qwen_vl.ranks import read_ranks
from qwen_vl.side_files import (
    KEPT_TOKENIZER,
    PREPROCESSOR,
    PROCESSOR,
    TOKENIZER_CONFIG,
    native_side_files,
)
from qwen_vl.tokenizer_json import TOKENIZER_JSON, tokenizer_json

CONFIG = "config.json"
RANKS = "qwen.tiktoken"


@dataclass(frozen=True, slots=True)
class SideFiles:
    """Files made anew (path -> content) and files copied byte by byte."""

    written: Mapping[str, bytes]
    carried: tuple[str, ...]


def native_files(opened: OpenedSnapshot, config: Mapping[str, Any]) -> SideFiles:
    """Make the native layout's files from the original's.

    Args:
        opened: the original snapshot.
        config: its config.json.

    Raises:
        MissingFileError: no rank file.
        RankFileError: a rank file that cannot be used.
        ConfigError: a config that contradicts itself or the rank file.
    """
    if opened.manifest.entry(RANKS) is None:
        raise MissingFileError(RANKS)
    ranks = read_ranks(inside(opened.folder, RANKS))
    native = to_native_config(config, n_ranks=len(ranks))
    made = {CONFIG: native, **native_side_files(_tokenizer_config(opened), native)}
    if helper_revision(opened.folder) == "r1":
        # its code stays behind, so what it did has to be said
        made[TOKENIZER_CONFIG]["style"] = "r1"
    written = {path: json_bytes(value) for path, value in made.items()}
    if opened.manifest.entry(TOKENIZER_JSON) is None:
        written[TOKENIZER_JSON] = tokenizer_json(ranks)
    return SideFiles(written, _others(opened, written))


def with_bundle(files: SideFiles) -> SideFiles:
    """Add the modelling file to native files, and say in them which classes it holds.

    Raises:
        BundleError: see `bundle_source`.
    """
    written = dict(files.written)
    for path, auto_map in (
        (CONFIG, MODEL_AUTO_MAP),
        (TOKENIZER_CONFIG, TOKENIZER_AUTO_MAP),
        (PREPROCESSOR, PROCESSOR_AUTO_MAP),
        (PROCESSOR, PROCESSOR_AUTO_MAP),
    ):
        written[path] = json_bytes({**json.loads(written[path]), "auto_map": auto_map})
    written[BUNDLE] = bundle_source()
    return SideFiles(written, tuple(path for path in files.carried if path != BUNDLE))


def original_files(opened: OpenedSnapshot, config: Mapping[str, Any]) -> SideFiles:
    """Give the original layout's files back from the native ones.

    Raises:
        ConfigError: a native config that does not carry its original.
        ConversionError: a tokenizer_config.json that was not made by `native_files`.
    """
    written = {CONFIG: json_bytes(to_original_config(config))}
    tokenizer = _tokenizer_config(opened) or {KEPT_TOKENIZER: None}
    kept = tokenizer.get(KEPT_TOKENIZER, ...)
    if kept is not None and not isinstance(kept, Mapping):
        raise ConversionError(
            f"{TOKENIZER_CONFIG} does not carry the original one",
            hint="Convert from the original folder again; that keeps its tokenizer config.",
        )
    if kept is not None:
        written[TOKENIZER_CONFIG] = json_bytes(kept)
    made_here = {TOKENIZER_CONFIG, PREPROCESSOR, PROCESSOR}
    if _has_our_tokenizer_json(opened):
        made_here.add(TOKENIZER_JSON)
    others = tuple(path for path in _others(opened, written) if path not in made_here)
    return SideFiles(written, others)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Serialise with sorted keys, so that equal values are equal files.

    Raises:
        ConversionError: NaN, infinity, or text that is no Unicode.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
        return (text + "\n").encode("utf-8")
    except ValueError as error:
        raise ConversionError(f"a config cannot be written as JSON: {error}") from error


def _tokenizer_config(opened: OpenedSnapshot) -> dict[str, Any] | None:
    if opened.manifest.entry(TOKENIZER_CONFIG) is None:
        return None
    return read_json_file(inside(opened.folder, TOKENIZER_CONFIG))


def _has_our_tokenizer_json(opened: OpenedSnapshot) -> bool:
    """Whether it is the one `native_files` writes, and not one that the original came with."""
    entries = [opened.manifest.entry(path) for path in (TOKENIZER_JSON, RANKS)]
    if None in entries:
        return False
    made = tokenizer_json(read_ranks(inside(opened.folder, RANKS)))
    return opened.read_file(TOKENIZER_JSON) == made


def _others(opened: OpenedSnapshot, written: Mapping[str, bytes]) -> tuple[str, ...]:
    return tuple(path for path in opened.companions() if path not in written)

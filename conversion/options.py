"""What the commands of this room can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import UsageError
from model_store.options import option

_SIZE = re.compile(r"([1-9][0-9]{0,8})(B|kB|KB|MB|GB)\Z")
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as "5GB" means; decimal units, as on the hubs' pages.

    Raises:
        UsageError: no such size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{text!r} is no size", hint="Write it as 5GB, 500MB or 4096B.")
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class RewriteOptions:
    """What every rewriting step can be told."""

    snapshot: str = option("snapshot folder or repo name", flag="", recorded=False)
    into: str | None = option(
        "folder, or local:owner/name, to write to (default: named after the source)",
        default=None,
        recorded=False,
    )
    max_shard_size: str = option("largest weight file", default="5GB")
    verify: bool = option(
        "hash the source's files against its manifest first", default=True, recorded=False
    )
    replace: bool = option(
        "replace an older snapshot of ours at the target", default=False, recorded=False
    )
    allow_odd: bool = option(
        "take a source with a wrong total_size, a dtype in config.json that no tensor has, or an "
        "auto_map into another repository",
        default=False,
        recorded=False,
    )


@dataclass(frozen=True, slots=True)
class ToTransformersOptions(RewriteOptions):
    """Original layout -> native layout."""

    # the bundle's digest is among the facts of the lineage
    bundle: bool = option(
        "add modeling_qwen_vl.py, for tools that load with trust_remote_code",
        default=False,
        recorded=False,
    )


@dataclass(frozen=True, slots=True)
class ToOriginalOptions(RewriteOptions):
    """Native layout -> original layout."""

    format: str = option("kind of weight files", default="bin", choices=("bin", "safetensors"))
    # the size of the files that were published; a .bin file may not be over 4 GB here
    max_shard_size: str = option("largest weight file", default="2GB")


@dataclass(frozen=True, slots=True)
class SameNamesOptions(RewriteOptions):
    """What the steps that keep every name can be told."""

    tied: str = option(
        "tensors that share their bytes: write each, or one as transformers does",
        default="duplicate",
        choices=("duplicate", "keep-one"),
    )
    metadata: tuple[str, ...] = option(
        "entry for the headers' __metadata__, beside those of the source (repeatable)",
        default=(),
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, slots=True)
class ToSafetensorsOptions(SameNamesOptions):
    """Any layout -> the same names in safetensors files."""


@dataclass(frozen=True, slots=True)
class ReshardOptions(SameNamesOptions):
    """The same names in files of another size or format."""

    format: str = option(
        "kind of weight files", default="keep", choices=("keep", "safetensors", "bin")
    )


@dataclass(frozen=True, slots=True)
class CastOptions(RewriteOptions):
    """The same names, floating-point tensors in another dtype."""

    to: str = option(
        "dtype to cast to", default="bfloat16", choices=("float32", "bfloat16", "float16")
    )
    include: tuple[str, ...] = option(
        "cast only tensors whose name matches (repeatable)", default=(), metavar="GLOB"
    )
    exclude: tuple[str, ...] = option(
        "leave tensors whose name matches as they are (repeatable)", default=(), metavar="GLOB"
    )
    metadata: tuple[str, ...] = option(
        "entry for the headers' __metadata__, beside those of the source (repeatable)",
        default=(),
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, slots=True)
class TextOnlyOptions(RewriteOptions):
    """Qwen-VL, either layout -> its language part as a stock Qwen2."""


@dataclass(frozen=True, slots=True)
class DequantizeOptions(RewriteOptions):
    """GPTQ -> plain weights."""

    to: str = option(
        "dtype of the weights", default="bfloat16", choices=("bfloat16", "float16", "float32")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeLoraOptions(RewriteOptions):
    """A base snapshot and an adapter -> a merged snapshot."""

    adapter: Path = option("folder of the adapter", recorded=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameOptions(RewriteOptions):
    """A snapshot and a table of rules -> the same values under other names."""

    rules: Path = option("TOML table of rules", recorded=False)
    metadata: tuple[str, ...] = option(
        "entry for the headers' __metadata__, beside those of the source (repeatable)",
        default=(),
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, slots=True)
class ConvertLoraOptions:
    """An adapter in one layout -> the same in the other."""

    adapter: Path = option("folder of the adapter", flag="", recorded=False)
    into: Path = option("folder to write to", recorded=False)
    to: str = option("layout to write", choices=("native", "original"))

"""What the commands of this room can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
class ToTransformersOptions:
    """Original layout -> native layout."""

    snapshot: str = option("snapshot folder or repo name", flag="", recorded=False)
    into: str | None = option(
        "folder, or local:owner/name, to write to (default: local:<owner>/<name>-Native)",
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


@dataclass(frozen=True, slots=True)
class ToOriginalOptions:
    """Native layout -> original layout."""

    snapshot: str = option("snapshot folder or repo name", flag="", recorded=False)
    into: str | None = option(
        "folder, or local:owner/name, to write to (default: local:<owner>/<name>-Original)",
        default=None,
        recorded=False,
    )
    format: str = option("kind of weight files", default="bin", choices=("bin", "safetensors"))
    # the size of the files that were published; a .bin file may not be over 4 GB here
    max_shard_size: str = option("largest weight file", default="2GB")
    verify: bool = option(
        "hash the source's files against its manifest first", default=True, recorded=False
    )
    replace: bool = option(
        "replace an older snapshot of ours at the target", default=False, recorded=False
    )


@dataclass(frozen=True, slots=True)
class ToSafetensorsOptions:
    """Any layout -> the same names in safetensors files."""

    snapshot: str = option("snapshot folder or repo name", flag="", recorded=False)
    into: str | None = option(
        "folder, or local:owner/name, to write to (default: local:<owner>/<name>-Safetensors)",
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

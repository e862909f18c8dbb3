"""Canonical JSON (RFC 8785) and digests: the same value gives the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

from model_store.errors import StoreError


def canonical_json(value: Any) -> bytes:
    """Serialise by RFC 8785: sorted keys, no spaces, UTF-8.

    Raises:
        StoreError: an integer beyond ±2⁵³, a number that is not finite, or a text that is not
            Unicode, such as a file name in another encoding.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise StoreError(f"cannot be written as canonical JSON: {error}") from error


def canonical_digest(value: Any) -> str:
    """Return the sha256 (lowercase hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def parse_json(data: bytes, *, name: str) -> Any:
    """Parse JSON that came from outside.

    Raises:
        StoreError: not UTF-8, not JSON, nested too deeply, or a key that occurs twice.
    """
    try:
        return strict_decoder().decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{name} is not valid JSON: {error}") from error


def strict_decoder() -> json.JSONDecoder:
    """A decoder that refuses keys that occur twice, and numbers that JSON does not have."""
    return json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # two readers may pick different ones of two equal keys, so neither may be trusted
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values

"""Canonical JSON: one value, one sequence of bytes; nothing ambiguous is taken in."""

from __future__ import annotations

import pytest

from model_store.canonical import canonical_digest, canonical_json, parse_json
from model_store.errors import StoreError


def test_equal_values_have_equal_bytes() -> None:
    one = {"b": [1.0, 1e21, "é"], "a": None}
    two = {"a": None, "b": [1, 1e21, "é"]}

    assert canonical_json(one) == canonical_json(two) == '{"a":null,"b":[1,1e+21,"é"]}'.encode()
    assert canonical_digest(one) == canonical_digest(two)


def test_json_from_outside_is_parsed() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}', name="x") == {"a": [1, 2.5, None]}


@pytest.mark.parametrize(
    "data",
    [
        b"{", b'{"a":1,"a":1}', b'{"x":{"a":1,"a":2}}', b"\xff", b"NaN", b"[-Infinity]",
        b"[" * 200_000, b"1" * 5000, b"",
    ],
    ids=["open", "twice", "twice-inside", "bytes", "nan", "infinity", "deep", "huge", "empty"],
)  # fmt: skip
def test_what_two_readers_could_take_differently_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"thing\.json is not valid JSON"):
        parse_json(data, name="thing.json")


@pytest.mark.parametrize("value", [2**53, float("inf"), "a\udcff.bin"])
def test_what_canonical_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(StoreError, match="canonical JSON"):
        canonical_json([value])

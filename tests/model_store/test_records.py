"""Records: a missing measurement is never a pass, and what is read back is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import StoreError, UnsafePathError
from model_store.manifest import Manifest, read_manifest, scan, write_manifest
from model_store.records import (
    Measurement,
    RecordSet,
    Verdict,
    hardware,
    read_record,
    read_records,
    versions,
    write_record,
)

KL = Measurement(
    "kl", 0.01, "nats", 100, "pass", threshold="<= 0.05", interval=(0.009, 0.011), primary=True
)
SPEED = Measurement("speed", None, "tokens/s", 0, "skipped", note="no accelerator")


def record(*measurements: Measurement, name: str = "parity") -> RecordSet:
    return RecordSet(
        name,
        "a" * 64,
        "b" * 64,
        ("verify",),
        7,
        measurements,
        hardware="x",
        versions={"python": "3"},
    )


def measured(verdict: Verdict, *, primary: bool = False) -> Measurement:
    value = None if verdict == "skipped" else 1
    return replace(KL, verdict=verdict, primary=primary, value=value)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, Manifest(scan(tmp_path)))
    return tmp_path


def test_a_record_is_read_back_and_listed_in_the_manifest(snapshot: Path) -> None:
    digest = read_manifest(snapshot).content_digest

    path = write_record(snapshot, record(KL, SPEED))

    assert read_record(path).json() == record(KL, SPEED).json()
    assert read_manifest(snapshot).entry("records/parity.json") is not None
    assert read_manifest(snapshot).content_digest == digest


def test_records_are_found_by_their_subject(snapshot: Path) -> None:
    write_record(snapshot, record(KL, name="b"))
    write_record(snapshot, replace(record(KL, name="a"), candidate="c" * 64))

    assert [found.name for found in read_records(snapshot)] == ["a", "b"]
    assert [found.name for found in read_records(snapshot, candidate="c" * 64)] == ["a"]


@pytest.mark.parametrize(
    ("measurements", "green", "verdict"),
    [
        ((measured("pass", primary=True),), True, "pass"),
        ((measured("pass"), measured("warn")), True, "warn"),
        ((measured("pass"), measured("skipped")), True, "pass"),
        ((measured("pass"), measured("skipped", primary=True)), False, "skipped"),
        ((measured("skipped", primary=True), measured("fail")), False, "fail"),
        ((measured("warn", primary=True), measured("fail")), False, "fail"),
    ],
)
def test_the_verdict_is_the_worst_one(
    measurements: tuple[Measurement, ...], green: bool, verdict: str
) -> None:
    assert record(*measurements).green is green
    assert record(*measurements).verdict == verdict


@pytest.mark.parametrize(
    "change",
    [
        {"value": None},
        {"verdict": "skipped"},
        {"verdict": "good"},
        {"value": float("nan")},
        {"value": float("inf")},
        {"interval": (0.0, float("inf"))},
    ],
)
def test_a_measurement_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        replace(KL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "ferry.record/9"},
        {"measurements": [{}]},
        {"measurements": [KL.json() | {"n": "many"}]},
        {"measurements": [KL.json() | {"interval": [1]}]},
        {"subject": None},
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record(KL).json() | change))

    with pytest.raises(StoreError):
        read_record(path)


def test_hardware_and_versions_say_something() -> None:
    assert hardware()
    assert set(versions(["numpy", "no-such-package"])) == {"python", "numpy"}


def test_a_record_is_not_written_through_a_link(tmp_path: Path, snapshot: Path) -> None:
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (snapshot / "records").symlink_to(elsewhere)

    with pytest.raises(UnsafePathError, match="symbolic link"):
        write_record(snapshot, record(KL))

    assert list(elsewhere.iterdir()) == []

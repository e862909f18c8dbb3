"""What counts as evidence that a snapshot may be published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.errors import NotPublishableError
from hub_tools.publishable import check_publishable
from model_store.manifest import Manifest, read_manifest, scan, write_manifest
from model_store.progress import NoProgress
from model_store.records import Measurement, RecordSet, write_record


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    for name in ("config.json", "README.md", "LICENSE"):
        (tmp_path / name).write_text("{}")
    write_manifest(tmp_path, Manifest(scan(tmp_path)))
    return tmp_path


def _record(snapshot: Path) -> RecordSet:
    measured = Measurement("kl", 0.0, "nats", 9, "pass", primary=True)
    candidate = read_manifest(snapshot).content_digest
    return RecordSet("parity-converted", "f" * 64, candidate, ("compare",), 0, (measured,))


def _check(snapshot: Path) -> None:
    check_publishable(
        snapshot,
        allow_unverified=False,
        allow_card_problems=True,
        secrets=[],
        progress=NoProgress(),
    )


def test_a_record_about_another_reference_is_evidence(snapshot: Path) -> None:
    write_record(snapshot, _record(snapshot))

    _check(snapshot)


def test_a_snapshot_held_against_itself_is_not_proven(snapshot: Path) -> None:
    record = _record(snapshot)
    write_record(snapshot, replace(record, reference=record.candidate))

    with pytest.raises(NotPublishableError, match="no parity record"):
        _check(snapshot)


def test_a_record_in_which_nothing_decides_is_no_evidence(snapshot: Path) -> None:
    record = _record(snapshot)
    reported = replace(record.measurements[0], primary=False)

    for measurements in ((), (reported,)):
        write_record(snapshot, replace(record, measurements=measurements))
        with pytest.raises(NotPublishableError, match="no parity record"):
            _check(snapshot)

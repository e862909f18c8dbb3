"""The blessed report: what somebody has looked at and declared good, until it is blessed anew.

Nothing becomes a baseline by itself: a gate that compares with whatever came last lets quality
drift away in steps too small to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.canonical import canonical_json, parse_json
from model_store.errors import StoreError
from model_store.files import write_bytes
from verification.errors import BaselineError
from verification.evidence import Finding
from verification.gate import Judged

SCHEMA = "ferry.baseline/1"
_REPORT = "ferry.parity/2"
_KEPT = ("claim", "verdict", "reference", "candidate", "profile", "command", "seed", "environment")
_LARGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Baseline:
    """A blessed report without its samples."""

    claim: str
    label: str  # of the candidate that was blessed
    candidate: str  # its content digest
    by: str
    note: str
    measurements: Mapping[str, Mapping[str, Any]]

    def value(self, name: str) -> float | None:
        value = self.measurements.get(name, {}).get("value")
        return float(value) if isinstance(value, int | float) else None

    def interval(self, name: str) -> tuple[float, float] | None:
        found = self.measurements.get(name, {}).get("interval")
        return None if found is None else (float(found[0]), float(found[1]))


def bless(report: Path, target: Path, *, by: str, note: str, accept_failure: bool = False) -> None:
    """Write a report's measurements as a baseline.

    Args:
        report: a report folder, or its parity.json.
        target: the file to write; an older baseline there is replaced.
        by: who blesses it.
        note: why.
        accept_failure: bless a report that failed, or has no verdict.

    Raises:
        BaselineError: not a report, or one that did not pass.
    """
    path = report / "parity.json" if report.is_dir() else report
    table = _read(path)
    if table.get("schema") != _REPORT:
        raise BaselineError(f"{path} is not a parity report of ours ({_REPORT})")
    if table["verdict"] not in ("pass", "warn") and not accept_failure:
        raise BaselineError(
            f"{path} says {table['verdict']}: nothing to be proud of",
            hint="Bless it all the same with --accept-failure, if you know why.",
        )
    keys = ("name", "value", "interval", "n", "verdict", "unit")
    rows = [{key: row[key] for key in keys} for row in table["measurements"]]
    kept = {key: table[key] for key in _KEPT}
    made = {"schema": SCHEMA, "by": by, "note": note, **kept, "measurements": rows}
    write_bytes(target, canonical_json(made))


def read_baseline(path: Path, claim: str) -> Baseline:
    """Read what `bless` wrote.

    Raises:
        BaselineError: it cannot be read, or is about another claim.
    """
    table = _read(path)
    if table.get("schema") != SCHEMA:
        raise BaselineError(f"{path} is not a blessed report ({SCHEMA})")
    if table.get("claim") != claim:
        raise BaselineError(f"{path} is about the claim {table.get('claim')!r}, not {claim!r}")
    try:
        return Baseline(
            claim=claim,
            label=str(table["candidate"]["label"]),
            candidate=str(table["candidate"]["content_digest"]),
            by=str(table["by"]),
            note=str(table["note"]),
            measurements={str(row["name"]): row for row in table["measurements"]},
        )
    except (KeyError, TypeError) as error:
        raise BaselineError(f"{path} is incomplete: {error!r}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise BaselineError(f"{path} is too large for a report")
        value = parse_json(path.read_bytes(), name=path.name)
    except OSError as error:
        raise BaselineError(f"{path} cannot be read: {error.strerror}") from error
    except StoreError as error:
        raise BaselineError(str(error)) from error
    if not isinstance(value, dict):
        raise BaselineError(f"{path} holds no report")
    return value


def is_worse(row: Judged, blessed: Baseline) -> bool:
    """Whether a measurement is worse than it was, beyond what both intervals explain."""
    name, m = row.measure.name, row.measurement
    before, now = blessed.value(name), m.value
    if name == "regressions" or row.measure.sense == "report":
        return False
    if before is not None and now is None and row.measurement.primary:
        return True  # what was measured before is missing now
    if before is None or not isinstance(now, int | float):
        return False
    sign = 1.0 if row.measure.sense == "at most" else -1.0
    if sign * (now - before) <= 1e-9 * max(abs(before), abs(now)):
        return False
    then = blessed.interval(name)
    if m.interval is None or then is None:
        return _grade(m.verdict) > _grade(str(blessed.measurements[name]["verdict"]))
    return m.interval[0] > then[1] if sign > 0 else m.interval[1] < then[0]


def _grade(verdict: str) -> int:
    return ("pass", "warn", "skipped", "fail").index(verdict)


def regressions(rows: Sequence[Judged], blessed: Baseline) -> Finding:
    """Count what got worse, and name it."""
    worse = [row.measure.name for row in rows if is_worse(row, blessed)]
    return Finding(len(worse), len(rows), note=", ".join(worse) or f"against {blessed.label}")

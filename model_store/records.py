"""Records: one JSON file per measurement set, inside the snapshot that it speaks of.

`records/<name>.json`, canonical JSON. A record names its subjects by content digest, so a record
copied to another snapshot is recognisably not about it. No timings in it: the same measurement on
the same machine gives the same bytes. Format: docs/formats.md.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from model_store.canonical import canonical_json, parse_json
from model_store.errors import StoreError
from model_store.files import write_bytes
from model_store.manifest import refresh_manifest
from model_store.paths import inside

SCHEMA = "ferry.record/1"
Verdict = Literal["pass", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured value and what was asked of it.

    `value` is None exactly when the verdict is "skipped"; a missing measurement is never a pass.
    """

    name: str
    value: float | int | str | None
    unit: str
    n: int  # how many samples stand behind the value
    verdict: Verdict
    threshold: str | None = None  # as read by people, for example "<= 0.05"
    interval: tuple[float, float] | None = None  # 95 % unless the note says otherwise
    primary: bool = False  # declared beforehand to decide the verdict
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise StoreError(f"measurement {self.name!r} has verdict {self.verdict!r}")
        if (self.value is None) != (self.verdict == "skipped"):
            raise StoreError(f"measurement {self.name!r}: a value is missing exactly when skipped")
        numbers = (self.value, *(self.interval or ()))
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise StoreError(f"measurement {self.name!r} is not finite, which JSON cannot hold")

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "n": self.n,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "interval": None if self.interval is None else list(self.interval),
            "primary": self.primary,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class RecordSet:
    """The measurements of one run of one command."""

    name: str  # file name in records/, without .json
    reference: str | None  # content digests
    candidate: str
    command: Sequence[str]  # without machine paths
    seed: int | None
    measurements: Sequence[Measurement]
    claim: str = ""
    hardware: str = ""
    versions: Mapping[str, str] | None = None
    profile: Mapping[str, Any] | None = None  # thresholds in force

    @property
    def green(self) -> bool:
        """No fail, and no primary measurement skipped."""
        return not any(
            m.verdict == "fail" or (m.primary and m.verdict == "skipped") for m in self.measurements
        )

    @property
    def verdict(self) -> Verdict:
        """The worst verdict; "skipped" when a primary measurement is missing and none failed."""
        if any(m.verdict == "fail" for m in self.measurements):
            return "fail"
        if any(m.verdict == "skipped" and m.primary for m in self.measurements):
            return "skipped"
        return "warn" if any(m.verdict == "warn" for m in self.measurements) else "pass"

    def json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "claim": self.claim,
            "subject": {"reference": self.reference, "candidate": self.candidate},
            "verdict": self.verdict,
            "command": list(self.command),
            "seed": self.seed,
            "hardware": self.hardware,
            "versions": dict(self.versions or {}),
            "profile": None if self.profile is None else dict(self.profile),
            "measurements": [m.json() for m in self.measurements],
        }


def write_record(snapshot: Path, record: RecordSet) -> Path:
    """Write a record into a snapshot and take it into the manifest; returns its path."""
    path = inside(snapshot, f"records/{record.name}.json")
    write_bytes(path, canonical_json(record.json()))
    refresh_manifest(snapshot)
    return path


def read_record(path: Path) -> RecordSet:
    """Read one record.

    Raises:
        StoreError: not a record of a schema that we know.
    """
    value = parse_json(path.read_bytes(), name=str(path))
    try:
        if value["schema"] != SCHEMA:
            raise StoreError(f"{path} has schema {value['schema']!r}, not {SCHEMA!r}")
        return RecordSet(
            name=str(value["name"]),
            claim=str(value["claim"]),
            reference=value["subject"]["reference"],
            candidate=str(value["subject"]["candidate"]),
            command=tuple(value["command"]),
            seed=value["seed"],
            hardware=str(value["hardware"]),
            versions=dict(value["versions"]),
            profile=value["profile"],
            measurements=tuple(_measurement(m) for m in value["measurements"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is not a record: {error!r}") from error


def _measurement(value: Any) -> Measurement:
    low_high = value["interval"]
    return Measurement(
        name=str(value["name"]),
        value=value["value"],
        unit=str(value["unit"]),
        n=int(value["n"]),
        verdict=value["verdict"],
        threshold=value["threshold"],
        interval=None if low_high is None else (float(low_high[0]), float(low_high[1])),
        primary=bool(value["primary"]),
        note=str(value["note"]),
    )


def read_records(snapshot: Path, *, candidate: str | None = None) -> list[RecordSet]:
    """Read a snapshot's records, sorted by name; `candidate` keeps those about that digest."""
    records = [read_record(path) for path in sorted((snapshot / "records").glob("*.json"))]
    return [r for r in records if candidate is None or r.candidate == candidate]


def hardware() -> str:
    """Describe the processor in words, as records give it."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), model)
    return f"{named.strip()} ({platform.machine()})"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the named packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

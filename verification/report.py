"""What a report says, as data: built once, written as JSON, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_store.records import RecordSet
from verification.evidence import Answer, ProbeResult, Side, WeightError
from verification.gate import Judged, Summary, rounded
from verification.probes import Box
from verification.profile import Profile

SCHEMA = "ferry.parity/1"
VERDICTS = {"pass": "pass", "warn": "warn", "fail": "fail", "skipped": "incomplete"}


@dataclass(frozen=True, slots=True)
class ParityReport:
    """One comparison: the record's content, and what only people need."""

    record: RecordSet
    profile: Profile
    reference: Side
    candidate: Side
    rows: tuple[Judged, ...]
    results: tuple[ProbeResult, ...]
    weights: tuple[WeightError, ...]
    summary: Summary
    seconds: float

    @property
    def verdict(self) -> str:
        """`pass`, `warn`, `fail` or `incomplete`."""
        return VERDICTS[self.summary.verdict]

    def worst(self, count: int) -> Sequence[ProbeResult]:
        """The probes whose answers are furthest apart, by mean KL; then by what was said."""
        return sorted(
            self.results, key=lambda r: (-r.divergence.kld_mean, r.identical, r.probe.key)
        )[:count]

    def summary_json(self) -> dict[str, Any]:
        """The report without samples and layers, for a command's --json."""
        return {k: v for k, v in self.json().items() if k not in ("samples", "weights")}

    def json(self) -> dict[str, Any]:
        """The report as parity.json has it; parity.schema.json describes it."""
        record = self.record
        return {
            "schema": SCHEMA,
            "claim": record.claim,
            "verdict": self.verdict,
            "sentence": {"en": self.summary.en, "zh": self.summary.zh},
            "reference": _side(self.reference),
            "candidate": _side(self.candidate),
            "command": list(record.command),
            "seed": record.seed,
            "profile": {
                "name": self.profile.name,
                "digest": self.profile.digest,
                "limits": dict(self.profile.table),
            },
            "environment": {
                "hardware": record.hardware,
                "versions": dict(record.versions or {}),
            },
            "seconds": round(self.seconds, 3),
            "measurements": [_row(row) for row in self.rows],
            "weights": [
                {"name": w.name, "relative": rounded(w.relative), "scale": rounded(w.scale)}
                for w in self.weights
            ],
            "samples": [_sample(result) for result in self.results],
        }


def _side(side: Side) -> dict[str, str]:
    return {
        "label": side.label,
        "content_digest": side.content_digest,
        "layout": side.layout,
        "source": side.source,
    }


def _row(row: Judged) -> dict[str, Any]:
    return row.measurement.json() | {
        "title": {"en": row.measure.en, "zh": row.measure.zh},
        "margin": row.margin,
        "seconds": round(row.seconds, 3),
    }


def _sample(result: ProbeResult) -> dict[str, Any]:
    probe = result.probe
    return {
        "key": probe.key,
        "language": probe.language,
        "kind": probe.kind,
        "question": probe.question,
        "images": len(probe.images),
        "reference": _answer(result.reference, result.reference_box),
        "candidate": _answer(result.candidate, result.candidate_box),
        "truth_box": _box(probe.truth),
        "iou": None if result.iou is None else rounded(result.iou),
        "common_prefix": result.common_prefix,
        "kl_mean": rounded(result.divergence.kld_mean),
        "kl": [rounded(value) for value in result.divergence.kld_per_token.tolist()],
    }


def _answer(answer: Answer, box: Box | None) -> dict[str, Any]:
    return {"text": answer.text, "tokens": list(answer.ids), "box": _box(box)}


def _box(box: Box | None) -> list[int] | None:
    return None if box is None else list(box)


def environment(versions: Mapping[str, str]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())

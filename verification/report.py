"""What a report says, as data: built once, written as JSON, JUnit, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model_store.records import RecordSet
from verification.baseline import Baseline, is_worse
from verification.evidence import Answer, Curve, Evidence, LayerError, ProbeResult, Side, TaskResult
from verification.gate import Judged, Summary, rounded
from verification.probes import Box
from verification.profile import Profile

SCHEMA = "ferry.parity/2"
VERDICTS = {"pass": "pass", "warn": "warn", "fail": "fail", "skipped": "incomplete"}
_POINTS = 200  # of a distribution curve


@dataclass(frozen=True, slots=True)
class ParityReport:
    """One comparison: the record's content, and what only people need."""

    record: RecordSet
    profile: Profile
    reference: Side
    candidate: Side
    rows: tuple[Judged, ...]
    evidence: Evidence
    summary: Summary
    seconds: float
    baseline: Baseline | None = None

    @property
    def results(self) -> Sequence[ProbeResult]:
        return self.evidence.results

    @property
    def verdict(self) -> str:
        """`pass`, `warn`, `fail` or `incomplete`."""
        return VERDICTS[self.summary.verdict]

    def worst(self, count: int) -> Sequence[ProbeResult]:
        """The probes to look at first: flipped from right to wrong, then furthest apart by KL."""
        return sorted(
            self.results,
            key=lambda r: (-_lost(r), -r.kl_mean, r.identical, r.probe.key),
        )[:count]

    def curves(self) -> list[Curve]:
        """The candidate's KL per position, and what it is held against."""
        own = Curve(
            "candidate",
            tuple(r.probe.key for r in self.results),
            tuple(r.scores.kl for r in self.results),
        )
        return [own, *self.evidence.curves] if self.results else []

    def summary_json(self) -> dict[str, Any]:
        """The report without samples and layers, for a command's --json."""
        left_out = ("samples", "weights", "layers", "curves")
        return {k: v for k, v in self.json().items() if k not in left_out}

    def json(self) -> dict[str, Any]:
        """The report as parity.json has it; parity.schema.json describes it."""
        record, evidence = self.record, self.evidence
        return {
            "schema": SCHEMA,
            "claim": record.claim,
            "verdict": self.verdict,
            "sentence": {"en": self.summary.en, "zh": self.summary.zh},
            "reference": asdict(self.reference),
            "candidate": asdict(self.candidate),
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
            "baseline": _baseline(self.baseline),
            "culprit": evidence.culprit,
            "measurements": [self._row(row) for row in self.rows],
            "tasks": [_task(task) for task in evidence.tasks],
            "layers": [_layer(layer) for layer in evidence.layers],
            "curves": [curve_json(curve) for curve in self.curves()],
            "weights": [
                {"name": w.name, "relative": rounded(w.relative), "scale": rounded(w.scale)}
                for w in evidence.weights
            ],
            "samples": [_sample(result) for result in self.results],
        }

    def _row(self, row: Judged) -> dict[str, Any]:
        blessed = self.baseline
        return row.measurement.json() | {
            "title": {"en": row.measure.en, "zh": row.measure.zh},
            "margin": row.margin,
            "seconds": round(row.seconds, 3),
            "blessed": None if blessed is None else blessed.value(row.measure.name),
            "regressed": blessed is not None and is_worse(row, blessed),
        }


def _lost(result: ProbeResult) -> bool:
    return bool(result.reference_right) and result.candidate_right is False


def _baseline(blessed: Baseline | None) -> dict[str, Any] | None:
    if blessed is None:
        return None
    return {
        "label": blessed.label,
        "content_digest": blessed.candidate,
        "by": blessed.by,
        "note": blessed.note,
    }


def _task(task: TaskResult) -> dict[str, Any]:
    return {k: rounded(v) if isinstance(v, float) else v for k, v in asdict(task).items()}


def _layer(layer: LayerError) -> dict[str, Any]:
    # JSON has no infinity: null is "of another shape"
    values = [v if np.isfinite(v) else None for v in (layer.propagated, layer.local)]
    found = [None if v is None else rounded(v) for v in values]
    return {"name": layer.name, "propagated": found[0], "local": found[1]}


def curve_json(curve: Curve) -> dict[str, Any]:
    """A distribution as up to 200 quantiles: shares of the positions, and the KL they keep to."""
    values = np.sort(np.concatenate(curve.parts)) if curve.parts else np.zeros(0)
    shares = np.linspace(0, 1, min(_POINTS, len(values)) or 1)
    quantiles = np.quantile(values, shares) if len(values) else np.zeros(1)
    return {
        "name": curve.name,
        "n": len(values),
        "share": [rounded(float(v)) for v in shares],
        "kl": [rounded(float(v)) for v in quantiles],
    }


def _sample(result: ProbeResult) -> dict[str, Any]:
    probe = result.probe
    return {
        "key": probe.key,
        "language": probe.language,
        "kind": probe.kind,
        "question": probe.question,
        "images": len(probe.images),
        "reference": _answer(result.reference, result.reference_box, result.reference_right),
        "candidate": _answer(result.candidate, result.candidate_box, result.candidate_right),
        "truth": probe.answer,
        "truth_box": _box(probe.truth),
        "iou": None if result.iou is None else rounded(result.iou),
        "common_prefix": result.common_prefix,
        "kl_mean": rounded(result.kl_mean),
        "kl": [rounded(value) for value in result.scores.kl.tolist()],
    }


def _answer(answer: Answer, box: Box | None, right: bool | None) -> dict[str, Any]:
    return {"text": answer.text, "tokens": list(answer.ids), "box": _box(box), "right": right}


def _box(box: Box | None) -> list[int] | None:
    return None if box is None else list(box)


def environment(versions: Mapping[str, str]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())

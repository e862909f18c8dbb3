"""A made-up report of any size, so that the page can be looked at without running a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model_store.records import RecordSet
from verification.evidence import (
    Answer,
    Curve,
    Evidence,
    LayerError,
    ProbeResult,
    Side,
    WeightError,
)
from verification.findings import curve_findings, quantized_findings
from verification.gate import judge, summarize
from verification.grading import grade
from verification.probes import Box, Probe, make_probes
from verification.profile import load_profile
from verification.report import ParityReport
from verification.streaming import Scores
from verification.task_findings import task_findings

_DRAWN = 120  # different pictures; more probes show them again
_SAID = {
    "en": "The picture shows two shapes on a plain background.",
    "zh": "图片中有两个图形，背景是纯色的。",
}


def made_report(count: int, *, seed: int = 0, worse: float = 1.0) -> ParityReport:
    """Make a quantized claim's report over `count` probes; `worse` scales the divergences."""
    dice = np.random.default_rng(seed)
    drawn = make_probes(seed, min(count, _DRAWN))
    results = [
        _result(replace(drawn[i % len(drawn)], key=f"probe-{i:03d}"), dice, worse)
        for i in range(count)
    ]
    curves = _curves(results, dice, worse)
    graded, tasks = task_findings(results, seed=seed)
    findings = quantized_findings(results, seed=seed) | graded
    findings |= curve_findings(results, curves, seed=seed)
    profile = load_profile("default", "quantized")
    rows = judge(profile, findings, probes_run=count, seconds={"kl_mean": 12.5})
    names = [f"model.language_model.layers.{i}" for i in range(4)]
    evidence = Evidence(
        findings=findings,
        results=results,
        weights=tuple(
            WeightError(f"{name}.{part}", float(dice.uniform(0.08, 0.15)), 0.99)
            for name in names
            for part in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
        ),
        layers=tuple(
            LayerError(name, 0.02 * (i + 1), 0.018) for i, name in enumerate((*names, "lm_head"))
        ),
        curves=curves,
        tasks=tuple(tasks),
    )
    measurements = tuple(row.measurement for row in rows)
    command = ("python", "-m", "verification.compare", "tiny", "tiny-Int4", "--claim", "quantized")
    record = RecordSet(
        "parity-quantized", "0" * 64, "1" * 64, command, seed, measurements, "quantized",
        "a made-up machine", {"python": "3.11", "torch": "2.13.0"},
    )  # fmt: skip
    return ParityReport(
        record=record,
        profile=profile,
        reference=Side("tiny", "0" * 64, "original", "modelscope:ferry/tiny@" + "2" * 40),
        candidate=Side("tiny-Int4", "1" * 64, "native", ""),
        rows=rows,
        evidence=evidence,
        summary=summarize(record.verdict, rows, "quantized"),
        seconds=98.7,
    )


def _result(probe: Probe, dice: np.random.Generator, worse: float) -> ProbeResult:
    ours = probe.answer or _SAID[probe.language]
    roll = dice.random()
    theirs = ours if roll > 0.25 * worse else _altered(ours, dice)
    boxes: tuple[Box | None, Box | None] = (None, None)
    if probe.truth is not None:
        boxes = _moved(probe.truth, dice, 8), _moved(probe.truth, dice, int(25 * worse))
    kl = dice.gamma(0.25, 0.06 * worse, size=max(3, len(ours) // 3))
    n = len(kl)
    scores = Scores(
        kl=kl,
        same_top1=dice.random(n) > 0.04 * worse,
        nll_reference=dice.exponential(0.2, n),
        nll_candidate=dice.exponential(0.202, n),
        max_delta=kl * 3,
        bit_equal=np.zeros(n, dtype=np.bool_),
    )
    said = _answer(ours), _answer(theirs)
    return ProbeResult(
        probe,
        *said,
        scores,
        *boxes,
        grade(probe, ours),
        grade(probe, theirs),
    )


def _answer(text: str) -> Answer:
    ids = tuple(ord(char) % 997 for char in text)
    return Answer(ids, text, (1.0,) * len(ids), tuple(range(len(text))))


def _altered(text: str, dice: np.random.Generator) -> str:
    at = int(dice.integers(0, max(len(text), 1)))
    return text[:at] + ("蓝色" if dice.random() < 0.5 else "blue") + text[at + 2 :]


def _moved(box: Box, dice: np.random.Generator, far: int) -> Box:
    x1, y1, x2, y2 = (min(999, max(0, v + int(dice.integers(-far, far + 1)))) for v in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _curves(
    results: list[ProbeResult], dice: np.random.Generator, worse: float
) -> tuple[Curve, ...]:
    keys = tuple(result.probe.key for result in results)
    sizes = [result.scores.n for result in results]
    return (
        Curve("noise floor", keys, tuple(dice.gamma(0.3, 1e-12, size=n) for n in sizes)),
        Curve("rtn", keys, tuple(dice.gamma(0.25, 0.11 * worse, size=n) for n in sizes)),
    )

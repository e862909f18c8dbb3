"""Blessing: explicit, refused for failures, and regressions beyond both intervals are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_store.command import ExitCode
from model_store.records import Measurement
from verification import bless
from verification.baseline import Baseline, is_worse, read_baseline, regressions
from verification.errors import BaselineError
from verification.gate import Judged
from verification.measures import BY_CLAIM


def _report(tmp_path: Path, verdict: str = "pass", **changes: Any) -> Path:
    side = {"label": "tiny-Int4", "content_digest": "0" * 64, "layout": "native", "source": ""}
    row = {"name": "kl_mean", "value": 0.02, "interval": [0.015, 0.025], "n": 5000}
    table = {
        "schema": "ferry.parity/2",
        "claim": "quantized",
        "verdict": verdict,
        "reference": side,
        "candidate": side,
        "profile": {"name": "default"},
        "command": ["python"],
        "seed": 0,
        "environment": {},
        "measurements": [{**row, "verdict": "pass", "unit": "nats", "title": {}}],
    }
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "parity.json").write_text(json.dumps(table | changes), encoding="utf-8")
    return folder


def _row(
    name: str, value: float | None, interval: tuple[float, float] | None, **more: Any
) -> Judged:
    measure = next(m for m in BY_CLAIM["quantized"] if m.name == name)
    verdict = more.pop("verdict", "skipped" if value is None else "pass")
    made = Measurement(name, value, measure.unit, 5000, verdict, interval=interval, **more)
    return Judged(measure, made, None, 0.0)


def _blessed(**rows: dict[str, Any]) -> Baseline:
    return Baseline("quantized", "old", "0" * 64, "me", "", rows)


def test_a_blessed_report_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "baseline.json"

    status = bless.main([str(_report(tmp_path)), "--into", str(target), "--by", "me"])

    found = read_baseline(target, "quantized")
    assert status == ExitCode.DONE
    assert capsys.readouterr().out.strip() == str(target)
    assert (found.by, found.label) == ("me", "tiny-Int4")
    assert found.value("kl_mean") == 0.02
    assert found.interval("kl_mean") == (0.015, 0.025)


@pytest.mark.parametrize("verdict", ["fail", "incomplete"])
def test_a_report_that_did_not_pass_is_blessed_only_on_demand(
    tmp_path: Path, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report, target = _report(tmp_path, verdict), tmp_path / "baseline.json"

    refused = bless.main([str(report), "--into", str(target)])

    assert refused == ExitCode.REFUSED
    assert not target.exists()
    assert f"says {verdict}" in capsys.readouterr().err
    assert bless.main([str(report), "--into", str(target), "--accept-failure"]) == ExitCode.DONE


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    report = _report(tmp_path, schema="somebody.else/1")

    assert bless.main([str(report), "--into", str(tmp_path / "b")]) == ExitCode.REFUSED
    assert (
        bless.main([str(tmp_path / "nowhere"), "--into", str(tmp_path / "b")]) == ExitCode.REFUSED
    )


def test_a_baseline_of_the_other_claim_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "baseline.json"
    bless.main([str(_report(tmp_path)), "--into", str(target), "--by", "me"])

    with pytest.raises(BaselineError, match="about the claim 'quantized'"):
        read_baseline(target, "converted")


@pytest.mark.parametrize(
    ("name", "now", "interval", "before", "worse"),
    [
        ("kl_mean", 0.03, (0.026, 0.034), (0.02, (0.015, 0.025)), True),
        ("kl_mean", 0.03, (0.024, 0.036), (0.02, (0.015, 0.025)), False),  # intervals meet
        ("kl_mean", 0.01, (0.008, 0.012), (0.02, (0.015, 0.025)), False),  # better
        ("top1_agreement", 0.90, (0.89, 0.91), (0.95, (0.94, 0.96)), True),
        ("top1_agreement", 0.97, (0.965, 0.975), (0.95, (0.94, 0.96)), False),
    ],
)
def test_worse_means_beyond_both_intervals_in_the_bad_direction(
    name: str,
    now: float,
    interval: tuple[float, float],
    before: tuple[float, tuple[float, float]],
    worse: bool,
) -> None:
    blessed = _blessed(**{name: {"value": before[0], "interval": before[1], "verdict": "pass"}})

    assert is_worse(_row(name, now, interval), blessed) is worse


def test_without_intervals_only_a_worse_verdict_counts() -> None:
    blessed = _blessed(weight_error_max={"value": 0.1, "interval": None, "verdict": "pass"})

    kept = _row("weight_error_max", 0.15, None)
    assert not is_worse(kept, blessed)
    warned = replace(kept, measurement=replace(kept.measurement, verdict="warn"))
    assert is_worse(warned, blessed)


def test_what_is_no_longer_measured_is_worse_when_it_is_primary() -> None:
    blessed = _blessed(kl_mean={"value": 0.02, "interval": [0.01, 0.03], "verdict": "pass"})
    rows = [_row("kl_mean", None, None, primary=True, note="too few")]

    found = regressions(rows, blessed)

    assert found.value == 1
    assert found.note == "kl_mean"

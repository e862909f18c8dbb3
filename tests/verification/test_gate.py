"""Judging: limits, intervals, missing evidence, and the sentence that sums up."""

from __future__ import annotations

import math
from dataclasses import replace

from model_store.records import RecordSet
from verification.evidence import Finding
from verification.gate import Judged, judge, summarize
from verification.profile import Profile, load_profile

_GOOD = {
    "tensors_differing": Finding(0, 9),
    "tensors_unpaired": Finding(0, 9),
    "token_ids_differing": Finding(0, 9),
    "pixels_max_delta": Finding(0.0, 9),
    "logits_max_delta": Finding(1e-5, 900),
    "kl_mean": Finding(1e-9, 900),
    "kl_p99": Finding(1e-8, 900),
    "top1_agreement": Finding(1.0, 900),
    "greedy_unexplained": Finding(0, 48),
    "boxes_differing": Finding(0, 12),
    "settings_differing": Finding(0, 60),
    "logits_bit_equal": Finding(1.0, 900),
    "modules_at_fault": Finding(0, 12),
    "witness_max_delta": Finding(1e-5, 64),
    "witness_image_error": Finding(4e-7, 64),
    "regressions": Finding(None, note="no blessed report was named", applies=False),
}


def _judge(profile: Profile, changes: dict[str, Finding], probes: int = 48) -> tuple[Judged, ...]:
    return judge(profile, _GOOD | changes, probes_run=probes, seconds={})


def _record(rows: tuple[Judged, ...]) -> RecordSet:
    measurements = tuple(row.measurement for row in rows)
    return RecordSet("parity", None, "0" * 64, (), 0, measurements)


def test_everything_within_its_limit_passes() -> None:
    rows = _judge(load_profile("default", "converted"), {})

    assert _record(rows).verdict == "pass"
    limited = [
        row for row in rows if row.measurement.threshold and row.measurement.value is not None
    ]
    assert len(limited) == 14
    assert all(row.margin is not None and row.margin >= 0 for row in limited)


def test_a_value_that_is_not_a_number_never_passes() -> None:
    rows = _judge(load_profile("default", "converted"), {"kl_mean": Finding(math.nan, 900)})

    assert _record(rows).verdict == "fail"


def test_too_few_samples_are_skipped_and_leave_no_verdict() -> None:
    rows = _judge(load_profile("default", "converted"), {"kl_mean": Finding(1e-9, 99)})

    named = {row.measurement.name: row.measurement for row in rows}
    assert named["kl_mean"].verdict == "skipped"
    assert named["kl_mean"].note == "n is 99, 100 are needed"
    assert _record(rows).verdict == "skipped"
    assert not _record(rows).green


def test_too_few_probes_skip_all_that_comes_from_probes_and_only_that() -> None:
    rows = _judge(load_profile("default", "converted"), {}, probes=10)

    skipped = {row.measurement.name for row in rows if row.measurement.verdict == "skipped"}
    assert "logits_max_delta" in skipped
    assert "tensors_differing" not in skipped


def test_what_cannot_be_measured_on_a_pair_is_skipped_without_being_primary() -> None:
    absent = Finding(None, note="neither side is in the 2023 layout", applies=False)

    rows = _judge(load_profile("default", "converted"), {"witness_max_delta": absent})

    assert _record(rows).verdict == "pass"
    named = {row.measurement.name: row.measurement for row in rows}
    assert named["witness_max_delta"].verdict == "skipped"


def test_a_wide_interval_fails_where_the_value_alone_would_pass() -> None:
    profile = load_profile("default", "quantized")
    only = {"kl_mean": Finding(0.04, 5000, (0.03, 0.09))}

    rows = judge(profile, only, probes_run=300, seconds={})

    named = {row.measurement.name: row.measurement for row in rows}
    assert named["kl_mean"].verdict == "fail"


def test_between_pass_and_warn_there_is_a_warning() -> None:
    profile = load_profile("default", "quantized")
    only = {"kl_p99": Finding(0.8, 5000), "top1_agreement": Finding(0.89, 5000)}

    rows = judge(profile, only, probes_run=300, seconds={})

    named = {row.measurement.name: row.measurement.verdict for row in rows}
    assert (named["kl_p99"], named["top1_agreement"]) == ("warn", "warn")


def test_the_sentence_of_a_failure_names_a_primary_measurement_and_its_worst_tensor() -> None:
    profile = load_profile("default", "converted")
    rows = _judge(profile, {"tensors_differing": Finding(2, 9, note="a.weight, b.weight")})

    said = summarize(_record(rows).verdict, rows, "converted")

    assert "Tensors with other bytes" in said.en
    assert "a.weight" in said.en
    assert "字节不同的张量" in said.zh


def test_a_limit_without_a_finding_is_skipped_not_passed() -> None:
    profile = replace(load_profile("default", "converted"))

    rows = judge(profile, {}, probes_run=48, seconds={})

    assert {row.measurement.verdict for row in rows} == {"skipped"}

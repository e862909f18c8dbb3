"""What the command's exit status says, one test a code; and that bad input is one line, no mess."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from model_store.command import ExitCode
from tests.verification import snapshots
from verification import compare


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    native = snapshots.to_native(snapshots.original_weights())
    reference = snapshots.write_native(folder / "tiny", native)
    return reference, snapshots.write_native(folder / "copy", native)


def _argv(pair: tuple[Path, Path], tmp_path: Path, *more: str) -> list[str]:
    argv = [*map(str, pair), "--claim", "converted", "--profile", "demo", "--samples", "16"]
    return [*argv, "--report", str(tmp_path / "report"), "--quiet", *more]


def _verdicts(tmp_path: Path) -> dict[str, str]:
    cases = ElementTree.parse(tmp_path / "report" / "junit.xml").getroot().iter("testcase")
    return {str(case.get("name")): next((child.tag for child in case), "") for case in cases}


def test_0_is_a_pass_and_junit_has_a_case_for_every_measurement(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    status = compare.main(_argv(pair, tmp_path))

    report = json.loads((tmp_path / "report" / "parity.json").read_text(encoding="utf-8"))
    assert status == ExitCode.DONE
    assert report["verdict"] == "pass"
    verdicts = _verdicts(tmp_path)
    assert list(verdicts) == [m["name"] for m in report["measurements"]]
    skipped = {m["name"] for m in report["measurements"] if m["verdict"] == "skipped"}
    assert {name for name, tag in verdicts.items() if tag == "skipped"} == skipped
    assert "failure" not in verdicts.values()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]


def test_1_is_a_failed_gate_and_junit_says_by_how_much(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = snapshots.read_weights(pair[0])
    weights["model.language_model.norm.weight"] *= np.float32(1.01)
    damaged = snapshots.write_native(tmp_path / "damaged", weights)

    status = compare.main(_argv((pair[0], damaged), tmp_path))

    assert status == ExitCode.GATE_FAILED
    assert _verdicts(tmp_path)["tensors_differing"] == "failure"
    text = (tmp_path / "report" / "junit.xml").read_text(encoding="utf-8")
    assert "model.language_model.norm.weight" in text
    assert "limit ≤ 0" in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--samples", "0"), "--samples is 0"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--seed", "-1"), "--seed must not be negative"),
        (("--profile", "nowhere.toml"), "built-in profiles are"),
        (("--only", "probe-999"), "there is no 'probe-999' among 16 probes"),
    ],
)
def test_2_is_a_wrong_call(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    said: str,
) -> None:
    status = compare.main(_argv(pair, tmp_path, *more))

    error = capsys.readouterr().err
    assert status == ExitCode.USAGE
    assert said in error
    assert error.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_3_is_missing_evidence_and_one_probe_leaves_the_record_alone(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = pair[1] / "records" / "parity-converted.json"
    record.unlink(missing_ok=True)

    status = compare.main(_argv(pair, tmp_path, "--only", "probe-003"))

    report = json.loads((tmp_path / "report" / "parity.json").read_text(encoding="utf-8"))
    assert status == ExitCode.INCOMPLETE
    assert report["verdict"] == "incomplete"
    assert [sample["key"] for sample in report["samples"]] == ["probe-003"]
    assert not record.exists()
    assert capsys.readouterr().out.startswith("incomplete: ")


@pytest.mark.parametrize("baseline", ["missing", "not json", "another claim"])
def test_4_is_a_refusal_in_one_line_and_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], baseline: str
) -> None:
    file = tmp_path / "baseline.json"
    if baseline == "not json":
        file.write_text("{", encoding="utf-8")
    elif baseline == "another claim":
        file.write_text('{"schema": "ferry.baseline/1", "claim": "quantized"}', encoding="utf-8")

    status = compare.main(_argv(pair, tmp_path, "--baseline", str(file)))

    error = capsys.readouterr().err
    assert status == ExitCode.REFUSED
    assert error.count("error:") == 1
    assert "hint:" in error
    assert not (tmp_path / "report").exists()
    assert not list(tmp_path.glob(".*"))

"""The record, the report folder and its three files: complete, harmless, the same every time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from PIL import Image

import verification
from model_store.command import ExitCode
from model_store.manifest import verify_snapshot
from model_store.progress import NoProgress
from model_store.records import read_record
from tests.verification import snapshots
from verification import compare
from verification.comparing import compare as compare_folders
from verification.errors import ReportTargetError
from verification.evidence import Answer
from verification.html_parts import figure, marked_difference
from verification.html_report import html
from verification.markdown_report import markdown
from verification.options import CompareOptions
from verification.report import ParityReport
from verification.report_folder import write_report

_SCHEMA = Path(next(iter(verification.__path__))) / "parity.schema.json"
_HOSTILE = "<script>alert(1)</script><img src=x onerror=y>\u202e|`*"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    native = snapshots.to_native(snapshots.original_weights())
    reference = snapshots.write_native(folder / "tiny", native)
    int4 = snapshots.write_native(folder / "tiny-Int4", snapshots.rtn_int4(native), quantized=True)
    return reference, int4


def _options(pair: tuple[Path, Path], **changes: Any) -> CompareOptions:
    options = CompareOptions(str(pair[0]), str(pair[1]), "quantized", profile="demo", samples=8)
    return replace(options, **changes)


@pytest.fixture(scope="module")
def report(pair: tuple[Path, Path]) -> ParityReport:
    return compare_folders(*pair, _options(pair), progress=NoProgress())


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def _collected(page: str) -> _Collector:
    collector = _Collector()
    collector.feed(page)
    return collector


def test_parity_json_is_what_its_schema_says(report: ParityReport) -> None:
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report.json(), schema)


def test_the_page_asks_nobody_for_anything(report: ParityReport) -> None:
    page = _collected(html(report))

    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/webp;base64,") for value in sources)


def test_what_a_model_says_cannot_become_markup(report: ParityReport) -> None:
    said = Answer((1,), _HOSTILE, (1.0,))
    worst = replace(report.results[0], candidate=said)
    side = replace(report.candidate, label=_HOSTILE)

    page = html(replace(report, results=(worst, *report.results[1:]), candidate=side))
    text = markdown(replace(report, candidate=side))

    assert "script" not in _collected(page).tags
    assert not [name for name, _ in _collected(page).attributes if name.startswith("on")]
    assert "\u202e" not in page
    assert "<script>" not in text


def test_both_boxes_are_drawn_over_the_thumbnail() -> None:
    drawn = figure(
        Image.new("RGB", (640, 320)), [("ref", (10, 20, 30, 40)), ("cand", (5, 5, 5, 5))]
    )

    assert 'class="box ref" x="10" y="20" width="20" height="20"' in drawn
    assert re.search(r'class="box cand" .* width="[1-9]', drawn)  # no area, and still seen


def test_the_first_character_that_differs_is_marked() -> None:
    assert "red <mark>c</mark>" in marked_difference("red circle", "red square")
    assert marked_difference("red", "red").count("mark") == 0
    assert marked_difference("red", "red square").endswith(
        '<mark>∎</mark><span class="after"></span>'
    )


def test_a_report_replaces_an_older_one_and_nothing_else(
    report: ParityReport, tmp_path: Path
) -> None:
    target = tmp_path / "report"
    write_report(target, report)
    (target / "stale").touch()

    write_report(target, report)

    assert sorted(p.name for p in target.iterdir()) == ["parity.json", "report.html", "summary.md"]
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_is_no_report_is_left_alone(report: ParityReport, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ReportTargetError):
        write_report(tmp_path, report)

    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_writes_the_same_record_twice_and_prints_where_things_are(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report"
    argv = [*map(str, pair), "--claim", "quantized", "--profile", "demo", "--samples", "8"]
    argv += ["--report", str(target), "--quiet"]
    path = pair[1] / "records" / "parity-quantized.json"

    status = compare.main(argv)
    first = path.read_bytes()
    compare.main([*argv, "--json"])

    # eight probes are too few for the demo profile: no verdict, and certainly no pass
    assert status == ExitCode.INCOMPLETE
    assert path.read_bytes() == first
    assert str(tmp_path).encode() not in first
    verify_snapshot(pair[1])
    record = read_record(path)
    assert record.verdict == "skipped"
    assert record.command[3:5] == ("tiny", "tiny-Int4")
    text, _, line = capsys.readouterr().out.partition("\n{")
    assert text.startswith("incomplete: No verdict on “quantized”")
    assert text.endswith(str(target / "report.html"))
    assert json.loads("{" + line)["verdict"] == "incomplete"


def test_another_architecture_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = snapshots.native_config()
    config["text_config"]["num_hidden_layers"] = 3
    other = snapshots.write_snapshot(tmp_path / "deeper", {}, config)

    status = compare.main([str(pair[0]), str(other), "--claim", "converted", "--quiet"])

    assert status == ExitCode.REFUSED
    assert "layers is 2 in tiny and 3 in deeper" in capsys.readouterr().err


def test_vocabularies_that_do_not_match_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = snapshots.read_weights(pair[0]), snapshots.native_config()
    for name in ("image_start_token_id", "image_end_token_id", "image_token_id"):
        config[name] += 1
    other = snapshots.write_snapshot(tmp_path / "longer", weights, config, ranks=257)

    status = compare.main([str(pair[0]), str(other), "--claim", "converted", "--quiet"])

    assert status == ExitCode.REFUSED
    assert "other ids for special tokens" in capsys.readouterr().err


def test_a_model_that_answers_nan_is_refused_in_one_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = snapshots.read_weights(pair[0])
    weights["lm_head.weight"][3, 5] = float("nan")
    broken = snapshots.write_native(tmp_path / "broken", weights)

    status = compare.main([str(pair[0]), str(broken), "--claim", "converted", "--quiet"])

    assert status == ExitCode.REFUSED
    assert "broken answers with logits that are not finite" in capsys.readouterr().err


def test_a_quantized_reference_is_refused(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status = compare.main([str(pair[1]), str(pair[0]), "--claim", "quantized", "--quiet"])

    assert status == ExitCode.REFUSED
    assert "tiny-Int4 is quantized itself" in capsys.readouterr().err


def test_a_folder_without_a_manifest_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert compare.main([str(pair[0]), str(tmp_path), "--claim", "converted"]) == ExitCode.REFUSED

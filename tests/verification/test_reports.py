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
from verification.html_explorer import script, script_policy
from verification.html_parts import DrawnBox, figure, marked_token
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
def report(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    work = tmp_path_factory.mktemp("work")
    found = compare_folders(*pair, _options(pair), work=work, progress=NoProgress())
    assert found is not None
    return found


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


def test_the_page_asks_nobody_for_anything_and_runs_one_script(report: ParityReport) -> None:
    text = html(report)

    page = _collected(text)
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith("data:image/webp;base64,") for value in sources)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert _scripts(text) == [script()]
    assert f"script-src {script_policy()}" in text
    assert "default-src 'none'" in text


def _scripts(page: str) -> list[str]:
    """What a browser would run, data blocks left out."""
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def test_what_a_model_says_cannot_become_markup(report: ParityReport) -> None:
    said = Answer((1,), _HOSTILE, (1.0,))
    worst = replace(report.results[0], candidate=said)
    evidence = replace(report.evidence, results=(worst, *report.results[1:]))
    side = replace(report.candidate, label=_HOSTILE)

    page = html(replace(report, evidence=evidence, candidate=side))
    text = markdown(replace(report, candidate=side))

    assert _scripts(page) == [script()]
    assert page.count("<script") == 2  # the samples as data, and ours
    assert not [name for name, _ in _collected(page).attributes if name.startswith("on")]
    assert "\u202e" not in page
    assert "<script>" not in text


def test_boxes_are_drawn_over_the_thumbnail_and_named_beside_it() -> None:
    boxes = [
        DrawnBox("truth", (10, 20, 31, 41)),
        DrawnBox("ref", (10, 20, 30, 40), "红色的圆形"),
        DrawnBox("cand", (5, 5, 5, 5), "蓝色的十字形"),
    ]

    drawn = figure(Image.new("RGB", (640, 320)), boxes)

    assert 'class="box ref" x="10" y="20" width="20" height="20"' in drawn
    assert 'class="box truth" x="10"' in drawn
    assert re.search(r'class="box cand" .* width="[1-9]', drawn)  # no area, and still seen
    assert "<li>红色的圆形</li><li>蓝色的十字形</li>" in drawn
    assert "红" not in drawn.split("<figcaption>")[0]  # in the picture there are only numbers


def test_the_first_token_that_differs_is_marked() -> None:
    said = Answer((1, 2, 3), "red circle", (1.0, 1.0, 1.0), (0, 3, 7))

    assert marked_token(said, 1) == 'red<mark> cir</mark><span class="after">cle</span>'
    assert marked_token(said, 3) == "red circle"  # nothing differs
    assert marked_token(replace(said, text=""), 0) == "<mark>∎</mark>"


def test_a_token_that_is_part_of_a_character_marks_the_character() -> None:
    said = Answer((1, 2), "é!", (1.0, 1.0), (0, 0))

    assert marked_token(said, 0).startswith("<mark>é</mark>")


def test_a_report_replaces_an_older_one_and_nothing_else(
    report: ParityReport, tmp_path: Path
) -> None:
    target = tmp_path / "report"
    write_report(target, report)
    (target / "stale").touch()

    write_report(target, report)

    assert sorted(p.name for p in target.iterdir()) == [
        "junit.xml",
        "parity.json",
        "report.html",
        "summary.md",
    ]
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

"""The Chinese page: every note that the code can make has its Chinese, and no English is left."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import verification
from tests.verification.made_report import made_report
from verification.baseline import Baseline, regressions
from verification.chinese import in_chinese, translated
from verification.evidence import Evidence, Finding
from verification.findings import converted_findings
from verification.gate import judge, summarize
from verification.html_report import html
from verification.measures import BY_CLAIM
from verification.profile import load_profile
from verification.report import ParityReport

_ROOM = Path(next(iter(verification.__path__)))
_FILLERS = ("1", "reference")  # what stands for a value in a note that was read from the source
# functions that return a note rather than put it into a finding
_RETURNED = {"gate.py": "_lacking", "running.py": "_culprit"}
_WORD = re.compile("[A-Za-z]{3,}")
_WORDS = re.compile("[A-Za-z]{2,}[ ,:;]+[A-Za-z]{2,}")
_TERMS = re.compile(r"KL|IoU|McNemar|Holm|nats|logits?|English")
_NAME = re.compile(r"[\w./-]*[A-Za-z][./_\d-][\w./-]*", re.ASCII)  # of a tensor, module, probe
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


class _Notes:
    """The texts that an expression of one module can make, its values replaced by a filler."""

    def __init__(self, path: Path, filler: str) -> None:
        self._tree = ast.parse(path.read_text(encoding="utf-8"))
        self._filler = filler

    def made(self, returned: str | None) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding":
                given = [word.value for word in node.keywords if word.arg == "note"]
                for note in [*given, *node.args[3:4]]:
                    yield from self._texts(note)
        if returned is not None:
            yield from self._function(returned)

    def _function(self, name: str) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                for inside in ast.walk(node):
                    if isinstance(inside, ast.Return) and inside.value is not None:
                        yield from self._texts(inside.value)

    def _texts(self, node: ast.expr) -> Iterator[str]:
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield from self._joined([self._part(part) for part in parts])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self._joined([list(self._texts(left)), list(self._texts(right))])
            case ast.IfExp(body=body, orelse=other):
                yield from self._texts(body)
                yield from self._texts(other)
            case ast.BoolOp(values=values):
                for value in values:
                    yield from self._texts(value)
            case ast.Call(func=ast.Name(id=name)) if name.startswith("_"):
                yield from self._function(name)
            case ast.Name(id=name):
                found = list(self._assigned(name))
                yield from found or [self._filler]
            case _:
                yield self._filler

    def _part(self, part: ast.expr) -> list[str]:
        if isinstance(part, ast.Constant):
            return [str(part.value)]
        assert isinstance(part, ast.FormattedValue)
        # a name that stands for words, as in f"{note}; more", and not for a number or a tensor
        return list(self._texts(part.value)) if isinstance(part.value, ast.Name) else [self._filler]

    def _joined(self, parts: Sequence[Sequence[str]]) -> Iterator[str]:
        texts = [""]
        for part in parts:
            texts = [text + more for text in texts for more in part]
        yield from texts

    def _assigned(self, name: str) -> Iterator[str]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                words = isinstance(node.value, ast.Constant | ast.JoinedStr | ast.IfExp)
                if words and not _is_number(node.value):
                    yield from self._texts(node.value)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not isinstance(node.value, str)


def _written(filler: str) -> dict[str, list[str]]:
    """The notes of each module, in the order of the source."""
    return {
        path.name: list(_Notes(path, filler).made(_RETURNED.get(path.name)))
        for path in sorted(_ROOM.glob("*.py"))
        if "Finding(" in path.read_text(encoding="utf-8") or path.name in _RETURNED
    }


def test_every_note_in_the_source_has_its_chinese() -> None:
    filled = [_written(filler) for filler in _FILLERS]

    untranslated = [
        (name, notes[0])
        for name in filled[0]
        for notes in zip(*(found[name] for found in filled), strict=True)
        if all(translated(note) is None for note in notes)
    ]

    assert not untranslated
    assert sum(len(notes) for notes in filled[0].values()) > 40  # it did find them


def test_a_note_without_chinese_would_be_found(tmp_path: Path) -> None:
    module = tmp_path / "new_findings.py"
    module.write_text('def f(n):\n    note = f"{n} apples"\n    return Finding(n, note=note)\n')

    found = list(_Notes(module, "1").made(None))

    assert found == ["1 apples"]
    assert translated("1 apples") is None


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("≤ 0.05, upper 95 % (warn ≤ 0.08)", "≤ 0.05，95 % 上限（警告 ≤ 0.08）"),
        ("a.w, b.w, c.w and 4 more", "a.w、b.w、c.w，另有 4 个"),
        ("colour, counting", "颜色、计数"),
        ("eps: 1 against absent, rope: [1, 2] against [3], 2 more",
         "eps：1 对 无；rope：[1, 2] 对 [3]；另有 2 项"),
        ("not run: tensors are missing or extra (no rule maps tensor 'x y')",
         "未运行：有缺失或多余的张量（没有规则对应张量 'x y'）"),
        ("on the weights of the candidate; worst: probe-001 (text)",
         "用候选的权重；最差：probe-001（纯文本）"),
    ],
)  # fmt: skip
def test_values_and_names_stay_and_the_words_around_them_change(english: str, chinese: str) -> None:
    assert in_chinese(english) == chinese


def test_names_from_a_checkpoint_cost_little_and_cannot_ask_for_more() -> None:
    assert in_chinese("worst: {0.__class__}") == "最差：{0.__class__}"
    assert translated(", ".join(["1"] * 300)) is None  # too deep
    assert translated("x: 1 against 2, " * 1000) is None  # too long


class _Page(HTMLParser):
    """What a reader of the Chinese page sees and hears, piece by piece."""

    _VOID = frozenset({"meta", "input", "img", "br"})
    _NAMES = frozenset({"en", "tick"})  # the other language, and modules along an axis
    _UNSEEN = frozenset({"script", "style", "title", "bdi", "h3", "figcaption"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._inside: list[bool] = []  # whether an open element keeps its text from the reader
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("aria-label"):
            self.pieces.append(given["aria-label"] or "")
        if tag in self._VOID:
            return
        # answers and questions are in the probe's language
        hidden = tag in self._UNSEEN or given.get("class") in self._NAMES
        self._inside.append(hidden or given.get("translate") == "no")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A shape of a drawing: nothing to read."""

    def handle_endtag(self, tag: str) -> None:
        self._inside.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and not any(self._inside):
            self.pieces.append(data.strip())


def _left_in_english(page: str) -> list[str]:
    """Pieces that are English, or have English words between Chinese ones."""
    pieces = _Page(page).pieces
    return [piece for piece in pieces if _is_english(_TERMS.sub("", _NAME.sub("", piece)))]


def _is_english(piece: str) -> bool:
    if _CHINESE.search(piece) is None:
        return _WORD.search(piece) is not None
    return " / " not in piece and _WORDS.search(piece) is not None  # a spoken label has both


def _converted(report: ParityReport) -> ParityReport:
    """The same results under the other claim, with a fault and a setting that differs."""
    profile = load_profile("default", "converted")
    findings = converted_findings(report.results, dtype="bfloat16") | {
        "tensors_differing": Finding(2, 9, note="a.weight, b.weight"),
        "settings_differing": Finding(1, 9, note="eps: 1e-05 against absent"),
        "modules_at_fault": Finding(1, 9, note="first: layers.1, 0.3 by itself"),
    }
    rows = judge(profile, findings, probes_run=len(report.results), seconds={})
    measurements = tuple(row.measurement for row in rows)
    record = replace(report.record, claim="converted", measurements=measurements)
    culprit = "layers.1 (error of its own 0.3): none of its tensors differs"
    return replace(
        report,
        record=record,
        profile=profile,
        rows=rows,
        evidence=replace(report.evidence, culprit=culprit, weights=()),
        summary=summarize(record.verdict, rows, "converted"),
    )


def _blessed(report: ParityReport) -> ParityReport:
    """The same report held against a better one."""
    before = {
        row.measure.name: {"value": 0.0, "interval": (0.0, 0.0), "verdict": "pass"}
        for row in report.rows
    }
    blessed = Baseline("quantized", "tiny-Int4", "1" * 64, "Ada", "a better day", before)
    findings = {**report.evidence.findings, "regressions": regressions(report.rows, blessed)}
    rows = judge(report.profile, findings, probes_run=len(report.results), seconds={})
    return replace(report, rows=rows, baseline=blessed)


def _stopped(report: ParityReport, claim: str) -> ParityReport:
    """A report that ends at the tensors: nothing else was measured."""
    reason = "not run: tensors are missing or extra (a.weight, b.weight, c.weight and 5 more)"
    findings = {m.name: Finding(None, note=reason) for m in BY_CLAIM[claim]}
    findings["tensors_unpaired"] = Finding(8, 9, note="a.weight, b.weight, c.weight and 5 more")
    profile = load_profile("default", claim)
    rows = judge(profile, findings, probes_run=0, seconds={})
    measurements = tuple(row.measurement for row in rows)
    record = replace(report.record, claim=claim, measurements=measurements)
    summary = summarize(record.verdict, rows, claim)
    evidence = replace(report.evidence, results=(), tasks=(), curves=(), layers=(), weights=())
    return replace(
        report, record=record, profile=profile, rows=rows, evidence=evidence, summary=summary
    )


@pytest.fixture(scope="module")
def measured() -> ParityReport:
    return made_report(300)  # as many as the profile wants


@pytest.mark.parametrize(
    "change", [None, _blessed, _converted], ids=["as it is", "held", "lossless"]
)
def test_no_english_sentence_is_left_in_the_chinese_page(
    measured: ParityReport, change: Callable[[ParityReport], ParityReport] | None
) -> None:
    report = measured if change is None else change(measured)
    few = replace(report.evidence, results=report.results[:40])  # pictures take their time

    assert _left_in_english(html(replace(report, evidence=few))) == []


@pytest.mark.parametrize("claim", ["converted", "quantized"])
def test_no_english_is_left_where_the_run_stopped_at_the_tensors(
    measured: ParityReport, claim: str
) -> None:
    assert _left_in_english(html(_stopped(measured, claim))) == []


def test_no_english_is_left_where_the_probes_were_too_few(measured: ParityReport) -> None:
    rows = judge(measured.profile, measured.evidence.findings, probes_run=8, seconds={})
    summary = summarize("skipped", rows, "quantized")
    report = replace(measured, rows=rows, summary=summary, evidence=Evidence({}))

    assert _left_in_english(html(report)) == []


def test_english_in_the_chinese_page_would_be_found(measured: ParityReport) -> None:
    report = measured
    row = report.rows[-1]
    odd = replace(row, measurement=replace(row.measurement, note="seven apples"))

    left = _left_in_english(html(replace(report, rows=(odd,), evidence=Evidence({}))))

    assert "seven apples" in left


def test_the_sentence_of_a_failure_is_chinese_up_to_the_names(measured: ParityReport) -> None:
    said = _converted(measured).summary.zh

    assert said.startswith(
        "“转换无损”不成立：“字节不同的张量”为 2 个张量，限值为 ≤ 0（a.weight，…）"
    )

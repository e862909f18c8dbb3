"""junit.xml for CI systems: a suite is a gate, a case a measurement; without data it is skipped."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from verification.gate import Judged, shown
from verification.report import ParityReport

# what XML 1.0 cannot hold
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: ParityReport) -> str:
    """Render the suite; a warning passes and says so in its output."""
    rows = report.rows
    counts = dict.fromkeys(("fail", "skipped"), 0)
    for row in rows:
        if row.measurement.verdict in counts:
            counts[row.measurement.verdict] += 1
    suites = Element("testsuites", name="modelferry parity")
    suite = SubElement(
        suites,
        "testsuite",
        name=f"parity-{report.record.claim}",
        tests=str(len(rows)),
        failures=str(counts["fail"]),
        errors="0",
        skipped=str(counts["skipped"]),
        time=f"{report.seconds:.3f}",
    )
    properties = SubElement(suite, "properties")
    for name, value in (
        ("verdict", report.verdict),
        ("reference", f"{report.reference.label} {report.reference.content_digest}"),
        ("candidate", f"{report.candidate.label} {report.candidate.content_digest}"),
        ("profile", f"{report.profile.name} {report.profile.digest}"),
    ):
        SubElement(properties, "property", name=name, value=_legal(value))
    for row in rows:
        _case(suite, row, report.record.claim)
    indent(suites)
    text: str = tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: Element, row: Judged, claim: str) -> None:
    m = row.measurement
    case = SubElement(
        suite, "testcase", classname=f"parity.{claim}", name=m.name, time=f"{row.seconds:.3f}"
    )
    said = _legal(_words(row))
    if m.verdict == "fail":
        SubElement(case, "failure", type="limit", message=said).text = said
    elif m.verdict == "skipped":
        SubElement(case, "skipped", message=_legal(m.note))
    else:
        SubElement(case, "system-out").text = said


def _words(row: Judged) -> str:
    m = row.measurement
    interval = "" if m.interval is None else f" [{m.interval[0]:.4g}, {m.interval[1]:.4g}]"
    limit = f"; limit {m.threshold}" if m.threshold else "; no limit"
    note = f"; {m.note}" if m.note else ""
    kind = "WARNING: " if m.verdict == "warn" else ""
    return f"{kind}{row.measure.en}: {shown(m)}{interval}, n = {m.n}{limit}{note}"


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)

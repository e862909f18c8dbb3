"""summary.md: the verdict and the table of measurements, for pull requests and job summaries."""

from __future__ import annotations

import re
import shlex

from verification.gate import Judged, shown
from verification.report import ParityReport, environment

_MARKS = {"pass": "✅ pass", "warn": "⚠️ warn", "fail": "❌ fail", "skipped": "➖ skipped"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~])")


def markdown(report: ParityReport) -> str:
    """Render the summary; text from outside is escaped."""
    lines = [
        f"# Parity: {report.record.claim}: {report.verdict}",
        "",
        escaped(report.summary.en),
        "",
        escaped(report.summary.zh),
        "",
        "| | snapshot | layout | content digest |",
        "|---|---|---|---|",
    ]
    for role, side in (("reference", report.reference), ("candidate", report.candidate)):
        digest = side.content_digest[:16]
        lines.append(f"| {role} | {escaped(side.label)} | {side.layout} | `{digest}…` |")
    lines += ["", "| measurement | verdict | value | 95 % interval | limit | n |"]
    lines += ["|---|---|---|---|---|---|", *(_row(row) for row in report.rows), ""]
    lines.append("**Bold** measurements are primary: without them there is no verdict.")
    lines += ["", "```sh", shlex.join(report.record.command), "```", ""]
    versions = environment(report.record.versions or {})
    lines += [f"{escaped(report.record.hardware)}; {escaped(versions)}; seed {report.record.seed}"]
    return "\n".join(lines) + "\n"


def _row(row: Judged) -> str:
    m = row.measurement
    name = f"**{row.measure.en}**" if m.primary else row.measure.en
    interval = "" if m.interval is None else f"{m.interval[0]:.4g} … {m.interval[1]:.4g}"
    note = f"<br>{escaped(m.note)}" if m.note else ""
    cells = [
        name.replace("|", "\\|") + note,
        "· reported" if row.only_reported else _MARKS[m.verdict],
        escaped(shown(m)),
        interval,
        (m.threshold or "").replace("|", "\\|"),
        str(m.n),
    ]
    return "| " + " | ".join(cells) + " |"


def escaped(text: str) -> str:
    """Make text harmless in Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))

"""report.html: one self-contained page; no network, light and dark, two languages."""

from __future__ import annotations

import shlex
from pathlib import Path

from verification.baseline import is_worse
from verification.evidence import Side
from verification.gate import Judged, shown, shown_in_chinese
from verification.html_charts import distribution_chart, interval_drawing, layer_chart
from verification.html_explorer import explorer, script, script_policy
from verification.html_parts import both, escaped, said, verbatim
from verification.html_samples import LEGEND, sample_card, weight_charts
from verification.html_tasks import flips
from verification.report import ParityReport, environment
from verification.tracing import FLOORS

_STYLE = Path(__file__).with_name("report.css")
_SAMPLES = 20
_WORDS = {
    "pass": ("✓ Pass", "✓ 通过"),
    "warn": ("! Pass with warnings", "! 通过，有警告"),
    "fail": ("✗ Fail", "✗ 未通过"),
    "incomplete": ("– Incomplete evidence", "– 证据不全"),
}
_CHIPS = {
    "pass": ("✓ pass", "✓ 通过"),
    "warn": ("! warn", "! 警告"),
    "fail": ("✗ fail", "✗ 未通过"),
    "skipped": ("– skipped", "– 跳过"),
    "reported": ("· reported", "· 仅报告"),
}
_COLUMNS = (
    ("", ""),
    ("Measurement", "测量项"),
    ("Value", "数值"),
    ("95 % interval, zones", "95 % 区间与限值区"),
    ("Limit", "限值"),
    ("Margin", "余量"),
    ("n", "n"),
    ("s", "秒"),
)


def html(report: ParityReport) -> str:
    """Render the page."""
    label = escaped(report.candidate.label)
    parts = [
        _header(),
        "<main>",
        _verdict(report),
        _pair(report),
        _measurements(report),
        _samples(report),
        flips(report.results, report.evidence.tasks),
        _distribution(report),
        _layers(report),
        _weights(report),
        explorer(report.results),
        _environment(report),
        f"</main><script>{script()}</script>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing may be fetched, and no script but ours may run, even if some text got through
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"img-src data:; style-src 'unsafe-inline'; script-src {script_policy()}\">"
        f'<title data-zh="一致性：{label}">Parity: {label}</title>'
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _header() -> str:
    return (
        '<input class="switch" type="radio" name="language" id="show-en" checked>'
        '<input class="switch" type="radio" name="language" id="show-zh">'
        f"<header><p>{both('Parity report', '一致性报告')}</p>"
        '<div class="languages"><label for="show-en" lang="en">English</label>'
        '<label for="show-zh" lang="zh-CN">中文</label></div></header>'
    )


def _verdict(report: ParityReport) -> str:
    sentence = both(escaped(report.summary.en), escaped(report.summary.zh))
    culprit = report.evidence.culprit
    blame = ""
    if culprit:
        words = both("First module at fault:", "首个出错的模块：")
        blame = f"<p>{words} {said(culprit)}</p>"
    return (
        f'<section class="verdict {report.verdict}"><strong>{both(*_WORDS[report.verdict])}'
        f"</strong><h1>{sentence}</h1>{blame}</section>"
    )


def _pair(report: ParityReport) -> str:
    reference = _side(both("Reference", "参考"), report.reference)
    return (
        f'<div class="pair">{reference}{_side(both("Candidate", "候选"), report.candidate)}</div>'
    )


def _side(role: str, side: Side) -> str:
    layout = {
        "original": both("layout of 2023", "2023 年布局"),
        "native": both("native layout", "原生布局"),
    }
    source = f"<dd>{verbatim(side.source)}</dd>" if side.source else ""
    return (
        f'<dl class="card"><dt>{role}</dt><dd class="name">{verbatim(side.label)}</dd>{source}'
        f"<dd>{layout[side.layout]} {_short(side.content_digest)}</dd></dl>"
    )


def _short(digest: str) -> str:
    return f'<span class="digest" translate="no">{digest[:16]}…</span>'


def _measurements(report: ParityReport) -> str:
    head = "".join(
        f"<th{' class=number' if i > 1 else ''}>{both(en, zh) if en else ''}</th>"
        for i, (en, zh) in enumerate(_COLUMNS)
    )
    lead = both(
        "Bold rows are primary: without them there is no verdict. A margin below zero is beyond "
        "the limit. Intervals draw whole pictures with all their dialogues. Seconds are "
        "those of the shared stage.",
        "粗体为主要项：缺少它们就没有结论。余量为负表示超出限值。区间按整图连同其全部对话重抽样。"
        "秒数为所在阶段的用时。",
    )
    rows = "".join(_row(row, report) for row in sorted(report.rows, key=_urgency))
    return (
        f"<h2>{both('Measurements', '测量')}</h2><p class=lead>{lead}</p>{_blessed(report)}"
        f'<div class="card"><table class="measurements"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _urgency(row: Judged) -> int:
    """Failures first, then warnings, then all else in the gate's own order."""
    return {"fail": 0, "warn": 1}.get(row.measurement.verdict, 2)


def _blessed(report: ParityReport) -> str:
    blessed = report.baseline
    if blessed is None:
        return ""
    label, by = verbatim(blessed.label), verbatim(blessed.by)
    note = f": {verbatim(blessed.note)}" if blessed.note else ""
    note_zh = f"：{verbatim(blessed.note)}" if blessed.note else ""
    return (
        "<p class=lead>"
        + both(
            f"Held against the report of {label}, blessed by {by}{note}. "
            "▼ marks what is worse than both intervals explain.",
            f"以经确认的基线 {label} 为对照（由 {by} 确认{note_zh}）。▼ 表示超出双方区间的退化。",
        )
        + "</p>"
    )


def _was(row: Judged, report: ParityReport) -> str:
    """What the blessed report has for a measurement, under the value."""
    blessed = report.baseline
    before = None if blessed is None else blessed.value(row.measure.name)
    if blessed is None or before is None:
        return ""
    mark = "▼ " if is_worse(row, blessed) else ""
    return f'<span class="note">{mark}{both("was", "此前")} {before:.4g}</span>'


def _row(row: Judged, report: ParityReport) -> str:
    m = row.measurement
    limit = report.profile.limits[m.name]
    kind = "reported" if row.only_reported else m.verdict
    chip = f'<span class="chip {kind}">{both(*_CHIPS[kind])}</span>'
    name = both(escaped(row.measure.en), escaped(row.measure.zh))
    note = f'<span class="note">{said(m.note)}</span>' if m.note else ""
    interval = ""
    if m.interval is not None:
        interval = f'<span class="note">{m.interval[0]:.4g} … {m.interval[1]:.4g}</span>'
    cells = (
        ("", _value(row) + _was(row, report)),
        ("95 %", interval_drawing(row, limit) + interval),
        (both("limit", "限值"), _limit(m.threshold)),
        (both("margin", "余量"), _margin(row.margin)),
        ("n =", str(m.n)),
        (both("time, s", "用时（秒）"), f"{row.seconds:.1f}"),
    )
    numbers = "".join(
        # beside a wide table's heads the label is not shown
        f'<td class="number">{f"<span class=label>{label} </span>" if label and text else ""}'
        f"{text}</td>"
        for label, text in cells
    )
    strength = ' class="primary"' if m.primary else ""
    return f"<tr><td>{chip}</td><td><span{strength}>{name}</span>{note}</td>{numbers}</tr>"


def _value(row: Judged) -> str:
    english, chinese = shown(row.measurement), shown_in_chinese(row.measurement)
    return escaped(english) if english == chinese else both(escaped(english), escaped(chinese))


def _margin(margin: float | None) -> str:
    if margin is None:
        return ""
    return f"{margin:+.3g}" if margin else "0"


def _limit(threshold: str | None) -> str:
    """The limit, what it warns from on a line of its own."""
    passes, _, warns = (threshold or "").partition(" (")
    below = f' <span class="note">{said(warns.rstrip(")"))}</span>' if warns else ""
    return (said(passes) if passes else "") + below


def _samples(report: ParityReport) -> str:
    worst = report.worst(_SAMPLES)
    if not worst:
        return ""
    top = max(float(result.kl_max) for result in worst)
    lead = both(
        f"{len(worst)} of {len(report.results)} probes: first those that went from right to "
        "wrong, then those with the largest mean KL divergence. The first token that differs is "
        "marked. "
        "Bars are the divergence at each token of the reference's answer; the highest is "
        f"{top:.3g} nats.",
        f"{len(report.results)} 个探针中的 {len(worst)} 个：先列由对变错者，"
        "再列平均 KL 散度最大者。"
        f"首个不同的词元已标出。柱形为参考回答各词元处的散度，最高 {top:.3g} nats。",
    )
    command = report.record.command
    cards = "".join(sample_card(result, top=top, command=command) for result in worst)
    boxed = any(result.reference_box is not None for result in worst)
    return (
        f"<h2>{both('Worst samples', '差异最大的样本')}</h2><p class=lead>{lead}</p>"
        f"{LEGEND if boxed else ''}{cards}"
    )


def _distribution(report: ParityReport) -> str:
    if not report.results:
        return ""
    lead = both(
        "Share of the positions whose divergence stays below a value. The further left a curve, "
        "the closer it is to the reference.",
        "散度低于某值的位置所占比例。曲线越靠左，越接近参考。",
    )
    return (
        f"<h2>{both('KL divergence', 'KL 散度')}</h2><p class=lead>{lead}</p>"
        f"{distribution_chart(report.curves())}"
    )


def _layers(report: ParityReport) -> str:
    if not report.evidence.layers:
        return ""
    place = report.record.command
    dtype = place[place.index("--dtype") + 1] if "--dtype" in place else "float32"
    lead = both(
        "Relative error of each module's output, on the probes that are traced. A module after a "
        "broken one carries its error on, and makes none by itself.",
        "各模块输出的相对误差（在被追踪的探针上）。出错模块之后的模块会传递误差，但自身并不出错。",
    )
    return (
        f"<h2>{both('Error by module', '逐模块误差')}</h2><p class=lead>{lead}</p>"
        f"{layer_chart(report.evidence.layers, FLOORS[dtype])}"
    )


def _weights(report: ParityReport) -> str:
    if not report.evidence.weights:
        return ""
    limit = report.profile.limits["weight_error_max"]
    lead = both(
        "Relative error of each dequantized weight, one bar per layer from first to last; "
        "the dashed line is the limit, the number the worst of the row.",
        "各层反量化权重的相对误差，从首层到末层每层一柱；虚线为限值，右侧为该行最大值。",
    )
    return (
        f"<h2>{both('Weight error', '权重误差')}</h2><p class=lead>{lead}</p>"
        f"{weight_charts(report.evidence.weights, limit)}"
    )


def _environment(report: ParityReport) -> str:
    record = report.record
    rows = (
        (both("Command", "命令"), f"<pre translate=no>{escaped(shlex.join(record.command))}</pre>"),
        (both("Seed", "随机种子"), str(record.seed)),
        (
            both("Profile", "阈值配置"),
            f"{verbatim(report.profile.name)} {_short(report.profile.digest)}",
        ),
        (both("Hardware", "硬件"), verbatim(record.hardware)),
        (both("Versions", "版本"), verbatim(environment(record.versions or {}))),
        (both("Digests", "摘要"), _digests(report)),
        (both("Time", "用时"), f"{report.seconds:.1f} s"),
    )
    body = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in rows)
    beside = both(
        "Machine-readable: parity.json beside this page.", "机器可读：同目录的 parity.json。"
    )
    return (
        f"<h2>{both('How this was measured', '测量方式')}</h2>"
        f'<div class="card"><table class="facts-table">{body}</table></div>'
        f"<footer>{beside}</footer>"
    )


def _digests(report: ParityReport) -> str:
    pairs = (("reference", "参考", report.reference), ("candidate", "候选", report.candidate))
    return "<br>".join(
        f'{both(en, zh)} <span class="digest" translate="no">{side.content_digest}</span>'
        for en, zh, side in pairs
    )

"""Drawings of the HTML report, as inline SVG: intervals, distributions, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verification.evidence import Curve, LayerError
from verification.gate import Judged
from verification.html_parts import both, escaped, spoken
from verification.profile import Limit
from verification.report import curve_json

_WIDTH, _HEIGHT = 120, 22  # of an interval
_WIDE, _TALL, _LEFT, _BOTTOM = 640, 240, 46, 30  # of a chart
_LEAST = 1e-9  # nats; below that a divergence is drawn as this


def interval_drawing(row: Judged, limit: Limit) -> str:
    """Draw value and interval over the zones of pass, warning and failure; empty without them."""
    m = row.measurement
    if not limit.pass_at or not isinstance(m.value, int | float):
        return ""  # against a limit of nought there is nothing to draw
    warn_at = limit.pass_at if limit.warn_at is None else limit.warn_at
    low, high = m.interval or (float(m.value), float(m.value))
    upward = row.measure.sense == "at most"
    ends = _ends(upward, m.unit, (low, high, limit.pass_at, warn_at))
    axis = _Axis(*ends)
    zones = _zones(axis, limit.pass_at, min(warn_at, ends[1]), upward)
    a, b, at = axis(low), axis(high), axis(float(m.value))
    title = f"{m.value:.4g} [{low:.4g}, {high:.4g}]"
    return (
        f'<svg class="interval" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title}"><title>{title}</title>{zones}'
        f'<line class="range" x1="{a:.1f}" x2="{b:.1f}" y1="11" y2="11"/>'
        f'<line class="range" x1="{a:.1f}" x2="{a:.1f}" y1="7" y2="15"/>'
        f'<line class="range" x1="{b:.1f}" x2="{b:.1f}" y1="7" y2="15"/>'
        f'<circle cx="{at:.1f}" cy="11" r="3.2"/></svg>'
    )


def _ends(upward: bool, unit: str, values: Sequence[float]) -> tuple[float, float]:
    low, high, pass_at, warn_at = values
    if upward:
        # a warning limit far out would squeeze everything else to the left
        top = max(high, pass_at * 1.15, min(warn_at, 3 * pass_at) * 1.15)
        # a ratio near one would huddle at the right end of an axis from nought
        least = min(low, pass_at)  # beyond the limit, the limit is still on the axis
        below = max(least - 0.6 * (top - least), min(0.0, low))
        return (min(0.0, low) if low < 0.6 * pass_at else below), top
    least = min(low, warn_at)
    most = 1.0 if unit in ("share", "IoU") else max(high, pass_at, 0.0)
    room = 0.15 * ((most - least) or 1.0)
    return least - room, most if unit in ("share", "IoU") else most + room


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return 4 + (_WIDTH - 8) * min(max((value - self.low) / span, 0.0), 1.0)


def _zones(axis: _Axis, pass_at: float, warn_at: float, upward: bool) -> str:
    edges = [axis(axis.low), axis(pass_at), axis(warn_at), axis(axis.high)]
    if not upward:
        edges = [axis(axis.high), axis(pass_at), axis(warn_at), axis(axis.low)]
    return "".join(
        f'<rect class="zone-{name}" x="{min(a, b):.1f}" y="2" '
        f'width="{abs(b - a):.1f}" height="18"/>'
        for name, a, b in zip(("pass", "warn", "fail"), edges, edges[1:], strict=False)
        if abs(b - a) > 0.05
    )


def distribution_chart(curves: Sequence[Curve]) -> str:
    """Draw the share of positions whose KL stays below a value, on a logarithmic scale."""
    tables = [curve_json(curve) for curve in curves]
    tables = [table for table in tables if table["n"]]
    largest = max((table["kl"][-1] for table in tables), default=0.0)
    if largest <= _LEAST:
        return _sentence(
            "Every divergence is exactly nil: there is no curve to draw.",
            "所有散度均为零，无曲线可画。",
        )
    low = math.floor(math.log10(max(_LEAST, _least_shown(tables))))
    high = math.ceil(math.log10(largest))
    drawn, legend = [], []
    for table in tables:
        kind = table["name"].replace(" ", "-")
        points = [
            (_across(math.log10(max(kl, _LEAST)), low, high), _up(share))
            for share, kl in zip(table["share"], table["kl"], strict=True)
        ]
        drawn.append(_polyline(f"curve {kind}", points))
        legend.append(f"<span><i class={kind!r}></i>{both(*_CURVES[table['name']])}</span>")
    ticks = [(_across(power, low, high), f"1e{power}") for power in range(low, high + 1)]
    rows = [(_up(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
    axes = _axes(ticks, rows)
    title = spoken("KL divergence, distribution", "KL 散度分布")
    return (
        f'<p class="lead legend">{"".join(legend)}</p>'
        f'<div class="card chart">{_svg(axes + "".join(drawn), title)}'
        f'<p class="axis">{both("KL divergence at a position, nats", "单个位置的 KL 散度（nats）")}'
        "</p></div>"
    )


_CURVES = {
    "candidate": ("candidate", "候选"),
    "noise floor": ("noise floor: the reference itself, batch 1", "噪声基线：参考模型逐条运行"),
    "rtn": ("rounding to nearest", "直接取整"),
}


def _least_shown(tables: Sequence[dict[str, list[float]]]) -> float:
    """Where the axis may begin: nine tenths of everything lie above."""
    return min(max(table["kl"][len(table["kl"]) // 10], _LEAST) for table in tables)


def layer_chart(layers: Sequence[LayerError], floor: float) -> str:
    """Draw the error of each module: what has come so far, and what it adds by itself."""
    if not layers:
        return ""
    values = [v for e in layers for v in (e.propagated, e.local) if 0 < v < math.inf]
    if not values:
        return _sentence(
            "Every module gives exactly what the reference's gives.",
            "每个模块的输出与参考完全相同。",
        )
    low = min(math.floor(math.log10(min(values))), math.floor(math.log10(floor)))
    high = max(math.ceil(math.log10(max(values))), 0)

    def place(index: int) -> float:
        return _across(index, 0, max(len(layers) - 1, 1))

    def level(value: float) -> float:
        return _up((math.log10(min(max(value, 10.0**low), 10.0**high)) - low) / (high - low))

    line = _polyline(
        "curve candidate", [(place(i), level(e.propagated)) for i, e in enumerate(layers)]
    )
    dots = "".join(
        f'<circle class="local" cx="{place(i):.1f}" cy="{level(e.local):.1f}" r="4">'
        f"<title>{escaped(e.name)}: {e.local:.3g} / {e.propagated:.3g}</title></circle>"
        for i, e in enumerate(layers)
    )
    y = level(10 * floor)
    limit = f'<line class="limit" x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
    step = max(1, -(-(high - low) // 6))
    rows = [(_up((p - low) / (high - low)), f"1e{p}") for p in range(low, high + 1, step)]
    names = [(place(i), _short(e.name)) for i, e in enumerate(layers) if i in _named(len(layers))]
    title = spoken("error by module", "逐模块误差")
    legend = "".join(
        f"<span>{mark}{both(*words)}</span>"
        for mark, words in (
            ('<i class="candidate"></i>', ("so far (propagated)", "累计误差")),
            (
                '<b class="dot"></b>',
                ("by itself, on the reference's input", "自身误差（输入取自参考）"),
            ),
            (
                '<i class="noise-floor"></i>',
                ("ten times the noise of the number type", "数据类型噪声的十倍"),
            ),
        )
    )
    return (
        f'<p class="lead legend">{legend}</p><div class="card chart">'
        f"{_svg(_axes(names, rows) + limit + line + dots, title)}</div>"
    )


def _named(count: int) -> frozenset[int]:
    """Which modules get their name under the chart: a few, evenly."""
    few = min(count, 6)
    return frozenset(round(i * (count - 1) / max(few - 1, 1)) for i in range(few))


def _short(name: str) -> str:
    parts = name.removeprefix("model.").replace("vision_tower", "vision")
    parts = parts.replace("language_model", "text").replace("multi_modal_projector", "projector")
    return parts.replace(".layers", "").replace(".position_embedding", ".in")


def _across(value: float, low: float, high: float) -> float:
    return _LEFT + 8 + (_WIDE - _LEFT - 24) * (value - low) / ((high - low) or 1)


def _up(share: float) -> float:
    return (_TALL - _BOTTOM) - (_TALL - _BOTTOM - 12) * min(max(share, 0.0), 1.0)


def _polyline(kind: str, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _axes(columns: Sequence[tuple[float, str]], rows: Sequence[tuple[float, str]]) -> str:
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in rows
    )
    names = "".join(
        f'<text class="tick" x="{x:.1f}" y="{_TALL - 10}" text-anchor="middle">'
        f"{escaped(label)}</text>"
        for x, label in columns
    )
    return lines + names


def _svg(inside: str, name: str) -> str:
    return (
        f'<svg class="wide" viewBox="0 0 {_WIDE + 20} {_TALL}" role="img" '
        f'aria-label="{escaped(name)}">{inside}</svg>'
    )


def _sentence(english: str, chinese: str) -> str:
    return f'<p class="lead">{both(english, chinese)}</p>'

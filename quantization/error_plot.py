"""The per-layer errors as a picture: an SVG that any browser shows, made of nothing but text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from quantization.sequential import LayerError

PLOT = "records/quantization.svg"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 960, 420, 64, 40, 56
_ROUNDED, _SOLVED = "#b0b7c3", "#1f6feb"


def error_plot(errors: Sequence[LayerError]) -> str:
    """Draw every linear's error and that of rounding to nearest, on a logarithmic axis."""
    values = [v for one in errors for v in (one.error, one.rounding_error) if v > 0] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    inner = _HEIGHT - _TOP - _BOTTOM

    def y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return _TOP + inner * (1 - share)

    step = (_WIDTH - _LEFT - 16) / max(len(errors), 1)
    parts = [_head(), *_axis(low, high, y)]
    for number, one in enumerate(errors):
        x = _LEFT + step * (number + 0.5)
        title = f"{one.name}: {one.error:.3g}, by rounding {one.rounding_error:.3g}"
        radius = min(4.0, max(1.2, step / 3))
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<line x1="{x:.1f}" y1="{y(one.rounding_error):.1f}" x2="{x:.1f}" '
            f'y2="{y(one.error):.1f}" stroke="{_ROUNDED}"/>'
            f'<circle cx="{x:.1f}" cy="{y(one.rounding_error):.1f}" r="{radius:.1f}" '
            f'fill="{_ROUNDED}"/>'
            f'<circle cx="{x:.1f}" cy="{y(one.error):.1f}" r="{radius:.1f}" fill="{_SOLVED}"/></g>'
        )
    parts.append(
        f'<text x="{_LEFT}" y="{_HEIGHT - 20}">linears in the order in which they run; '
        "point at one for its name</text></svg>\n"
    )
    return "\n".join(parts)


def _head() -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n'
        f'<text x="{_LEFT}" y="22">Relative output error of each linear: '
        f'<tspan fill="{_SOLVED}">as quantized</tspan>, '
        f'<tspan fill="#7a8290">by rounding to nearest</tspan></text>'
    )


def _axis(low: int, high: int, y: object) -> list[str]:
    assert callable(y)  # noqa: S101
    lines = []
    for power in range(low, high + 1):
        at = y(10.0**power)
        lines.append(
            f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - 16}" y2="{at:.1f}" stroke="#e3e6ea"/>'
            f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>'
        )
    return lines

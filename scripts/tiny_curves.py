"""Draw the training curves of the tiny model: losses above, what it gets right below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 150, 26, 30
_SCALE = 2  # drawn twice as large and scaled down, which smooths the lines
_INKS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b",
         "#7f7f7f", "#bcbd22", "#17becf", "#9467bd")  # fmt: skip
Log = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: named lines of (minute, value); `top` is the upper end of its axis."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    top: float


def smoothed(log: Log, name: str, *, over: int = 5) -> list[tuple[float, float]]:
    """(minute, mean of the last few measurements) where a log has the name."""
    found = [(line["seconds"] / 60, float(line[name])) for line in log if name in line]
    return [
        (minute, sum(v for _, v in found[max(0, n - over + 1) : n + 1]) / min(n + 1, over))
        for n, (minute, _) in enumerate(found)
    ]


def curves(logs: Mapping[str, Log], shown: Mapping[str, Sequence[str]]) -> Image.Image:
    """A picture with two diagrams for each stage: its loss, and shares right by kind.

    `shown` has the names for each stage; a stage gone through again has a number behind its own.
    """
    panels: list[Panel] = []
    for stage, log in logs.items():
        loss = smoothed(log, "loss")
        top = max((value for _, value in loss), default=1.0)
        panels.append(Panel(f"{stage}: loss", {"loss": loss}, top))
        right = {name: smoothed(log, name) for name in shown[stage.split()[0]]}
        panels.append(Panel(f"{stage}: share right", right, 1.0))
    sheet = Image.new("RGB", (2 * _WIDTH, (len(panels) + 1) // 2 * _HEIGHT), "white")
    for number, panel in enumerate(panels):
        sheet.paste(_draw(panel), (number % 2 * _WIDTH, number // 2 * _HEIGHT))
    return sheet


def _draw(panel: Panel) -> Image.Image:
    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * _SCALE)
    left, right = _LEFT * _SCALE, (_WIDTH - _RIGHT) * _SCALE
    top, bottom = _TOP * _SCALE, (_HEIGHT - _BOTTOM) * _SCALE
    last = max((line[-1][0] for line in panel.lines.values() if line), default=1.0)
    pen.text((left, 4 * _SCALE), panel.title, fill="black", font=font)
    for part in range(5):
        y = bottom - (bottom - top) * part / 4
        pen.line((left, y, right, y), fill="#dddddd", width=_SCALE)
        pen.text((left - 6, y), f"{panel.top * part / 4:.3g}", fill="black", font=font, anchor="rm")
        x = left + (right - left) * part / 4
        pen.text((x, bottom + 6), f"{last * part / 4:.0f}", fill="black", font=font, anchor="mt")
    pen.text((right, bottom + 18 * _SCALE), "minutes", fill="black", font=font, anchor="rm")
    for number, (name, line) in enumerate(panel.lines.items()):
        ink = _INKS[number % len(_INKS)]
        points = [
            (left + (right - left) * minute / last, bottom - (bottom - top) * value / panel.top)
            for minute, value in line
        ]
        if len(points) > 1:
            pen.line(points, fill=ink, width=2 * _SCALE, joint="curve")
        pen.text((right + 12, top + number * 17 * _SCALE), name, fill=ink, font=font)
    return image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)

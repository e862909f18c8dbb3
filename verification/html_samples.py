"""The part of the HTML report that shows samples and weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verification.boxes import read_boxes
from verification.evidence import Answer, ProbeResult, WeightError
from verification.html_parts import bars, both, escaped, figure, marked_difference
from verification.probes import Box
from verification.profile import Limit

_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)")

LEGEND = (
    '<p class="lead legend"><span><i style="border-color:var(--ref)"></i>'
    + both("reference", "参考")
    + '</span><span><i style="border-color:var(--cand);border-top-style:dashed"></i>'
    + both("candidate", "候选")
    + '</span><span><i style="border-color:#8a939b;border-top-style:dotted"></i>'
    + both("where it really is", "真实位置")
    + "</span></p>"
)


def sample_card(result: ProbeResult, *, top: float) -> str:
    """Show one probe: image and boxes, question, both answers, KL per token.

    Args:
        result: what both sides said.
        top: the KL that fills the height of the bars; shared, so that cards compare.
    """
    probe, kl = result.probe, result.scores
    facts = [
        escaped(probe.key),
        both(f"mean KL {result.kl_mean:.4g}", f"平均 KL {result.kl_mean:.4g}"),
        both(
            f"{result.common_prefix} of {len(result.reference.ids)} tokens in common",
            f"前 {result.common_prefix} / {len(result.reference.ids)} 个词元相同",
        ),
    ]
    if result.iou is not None:
        facts.append(f"IoU {result.iou:.2f}")
    ours, theirs = result.reference.text, result.candidate.text
    rows = [
        (both("reference", "参考"), f"<bdi>{marked_difference(ours, theirs)}</bdi>"),
        (both("candidate", "候选"), f"<bdi>{marked_difference(theirs, ours)}</bdi>"),
    ]
    said = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    chart = bars(kl.kl.tolist(), top, name="KL divergence per token")
    return (
        f'<article class="card sample"><div class="shown">{_shown(result)}</div>'
        f'<div class="said"><h3 lang="{probe.language}">{escaped(probe.question)}</h3>'
        f'<p class="facts">{" · ".join(facts)}</p><dl>{said}</dl>{chart}</div></article>'
    )


def _shown(result: ProbeResult) -> str:
    images = result.probe.images
    if not images:
        return f'<div class="text">{both("text only", "纯文本")}</div>'
    candidates = (
        ("truth", result.probe.truth),
        ("ref", _box_of(result.reference, result.reference_box)),
        ("cand", _box_of(result.candidate, result.candidate_box)),
    )
    boxes = [(name, box) for name, box in candidates if box is not None]
    # boxes speak of the last picture
    return "".join(
        figure(image, boxes if i == len(images) - 1 else []) for i, image in enumerate(images)
    )


def _box_of(answer: Answer, asked: Box | None) -> Box | None:
    found = read_boxes(answer.text)
    return asked if asked is not None else (found[0] if found else None)


def weight_charts(weights: Sequence[WeightError], limit: Limit) -> str:
    """Draw the error of every quantized linear: a row per kind of layer, a bar per layer."""
    kinds: dict[str, list[tuple[int, WeightError]]] = {}
    for weight in weights:
        match = _LAYER.search(weight.name)
        kind, layer = (match[2], int(match[1])) if match else (weight.name, 0)
        kinds.setdefault(kind, []).append((layer, weight))
    fail_at = limit.warn_at if limit.warn_at is not None else limit.pass_at
    top = 1.15 * max([w.relative for w in weights] + [fail_at or 0.0])
    layers = 1 + max(layer for rows in kinds.values() for layer, _ in rows)
    drawn = "".join(
        f"<span>{escaped(kind)}</span>{_row(rows, layers, top, limit)}"
        f'<span class="number">{max(w.relative for _, w in rows):.3f}</span>'
        for kind, rows in sorted(kinds.items())
    )
    return f'<div class="card weights">{drawn}</div>'


def _row(rows: Sequence[tuple[int, WeightError]], layers: int, top: float, limit: Limit) -> str:
    columns = max(layers, 24)  # few layers give bars, not blocks
    rects = "".join(
        f'<rect class="bar-{_grade(weight.relative, limit)}" x="{layer * 10 + 1}" '
        f'y="{100 - h:.1f}" width="8" height="{h:.1f}">'
        f"<title>{escaped(weight.name)}: {weight.relative:.4f}</title></rect>"
        for layer, weight in rows
        for h in [max(1.5, 100 * weight.relative / top)]
    )
    line = ""
    if limit.pass_at is not None:
        y = 100 - 100 * limit.pass_at / top
        line = f'<line x1="0" x2="{columns * 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return (
        f'<svg viewBox="0 0 {columns * 10} 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{rects}{line}</svg>"
    )


def _grade(value: float, limit: Limit) -> str:
    if limit.pass_at is None or value <= limit.pass_at:
        return "pass"
    return "warn" if limit.warn_at is not None and value <= limit.warn_at else "fail"

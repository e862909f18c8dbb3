"""The part of the HTML report that shows samples, the worst ones first, and weights."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from verification.boxes import read_boxes
from verification.evidence import Answer, ProbeResult, WeightError
from verification.html_parts import (
    DrawnBox,
    bars,
    both,
    escaped,
    figure,
    marked_token,
    spoken,
    verbatim,
)
from verification.html_tasks import kind_words
from verification.probes import Box
from verification.profile import Limit

_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)")
_SAID_BOX = re.compile(r"<ref>([^<]{0,80})</ref>\s*<box>([^<]*)</box>")
_GRADES = {True: ("right", "对"), False: ("wrong", "错")}

LEGEND = (
    '<p class="lead legend"><span><i style="border-color:var(--ref)"></i>'
    + both("reference", "参考")
    + '</span><span><i style="border-color:var(--cand);border-top-style:dashed"></i>'
    + both("candidate", "候选")
    + '</span><span><i style="border-color:var(--truth);border-top-style:dotted"></i>'
    + both("where it really is", "真实位置")
    + "</span></p>"
)


def sample_card(result: ProbeResult, *, top: float, command: Sequence[str]) -> str:
    """Show one probe: image and boxes, question, both answers, KL per token, how to rerun it.

    Args:
        result: what both sides said.
        top: the KL that fills the height of the bars; shared, so that cards compare.
        command: the command that made the report.
    """
    probe = result.probe
    facts = [
        verbatim(probe.key),
        kind_words(probe.kind),
        both(f"mean KL {result.kl_mean:.4g}", f"平均 KL {result.kl_mean:.4g}"),
        both(
            f"{result.common_prefix} of {len(result.reference.ids)} tokens in common",
            f"前 {result.common_prefix} / {len(result.reference.ids)} 个词元相同",
        ),
    ]
    if result.iou is not None:
        facts.append(f"IoU {result.iou:.2f}")
    at = len(result.reference.ids) + 1 if result.identical else result.common_prefix
    chart = bars(
        result.scores.kl.tolist(),
        top,
        name=spoken("KL divergence per token", "各词元的 KL 散度"),
        marked=-1 if result.identical else at,
    )
    rerun = shlex.join([*command, "--only", probe.key])
    return (
        f'<article class="card sample"><div class="shown">{_shown(result)}</div>'
        f'<div class="said"><h3 lang="{probe.language}">{escaped(probe.question)}</h3>'
        f'<p class="facts">{" · ".join(facts)}</p><dl>{_answers(result, at)}</dl>{chart}'
        f"<details><summary>{both('run this sample again', '重新运行此样本')}</summary>"
        f"<pre translate=no>{escaped(rerun)}</pre></details></div></article>"
    )


def _answers(result: ProbeResult, at: int) -> str:
    rows = [
        ("reference", "参考", marked_token(result.reference, at), result.reference_right),
        ("candidate", "候选", marked_token(result.candidate, at), result.candidate_right),
    ]
    said = "".join(
        f"<dt>{both(en, zh)}</dt><dd><bdi>{text}</bdi>{_grade(right)}</dd>"
        for en, zh, text, right in rows
    )
    truth = result.probe.answer
    if truth is not None and result.reference_right is not None:
        said += f"<dt>{both('truth', '真值')}</dt><dd><bdi>{escaped(truth)}</bdi></dd>"
    return said


def _grade(right: bool | None) -> str:
    if right is None:
        return ""
    return f' <span class="grade {_GRADES[right][0]}">{both(*_GRADES[right])}</span>'


def _shown(result: ProbeResult) -> str:
    images = result.probe.images
    if not images:
        return f'<div class="text">{both("text only", "纯文本")}</div>'
    boxes = _boxes(result)
    # boxes speak of the last picture
    return "".join(
        figure(image, boxes if i == len(images) - 1 else []) for i, image in enumerate(images)
    )


def _boxes(result: ProbeResult) -> list[DrawnBox]:
    probe = result.probe
    found = [DrawnBox("truth", probe.truth)] if probe.truth is not None else []
    found += _said_boxes("ref", result.reference, result.reference_box)
    found += _said_boxes("cand", result.candidate, result.candidate_box)
    named = {box.label for box in found if box.label}
    # one name needs no number: the question says it
    return found if len(named) > 1 else [DrawnBox(box.kind, box.box) for box in found]


def _said_boxes(kind: str, answer: Answer, asked: Box | None) -> list[DrawnBox]:
    if asked is not None:
        return [DrawnBox(kind, asked)]
    labelled = [
        DrawnBox(kind, box, match[1])
        for match in _SAID_BOX.finditer(answer.text)
        for box in read_boxes(match[2])
    ]
    return labelled or [DrawnBox(kind, box) for box in read_boxes(answer.text)]


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
        f"{verbatim(kind)}{_row(rows, layers, top, limit)}"
        f'<span class="number">{max(w.relative for _, w in rows):.3f}</span>'
        for kind, rows in sorted(kinds.items())
    )
    return f'<div class="card weights">{drawn}</div>'


def _row(rows: Sequence[tuple[int, WeightError]], layers: int, top: float, limit: Limit) -> str:
    columns = max(layers, 24)  # few layers give bars, not blocks
    rects = "".join(
        f'<rect class="bar-{_level(weight.relative, limit)}" x="{layer * 10 + 1}" '
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


def _level(value: float, limit: Limit) -> str:
    if limit.pass_at is None or value <= limit.pass_at:
        return "pass"
    return "warn" if limit.warn_at is not None and value <= limit.warn_at else "fail"

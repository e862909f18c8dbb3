"""The part of the HTML report that holds every sample: data in the page, a page of rows at a time.

Ten thousand samples are a few megabytes of JSON that the browser parses when the list is first
opened; never more than fifty rows are in the document. The script is ours, its hash stands in the
page's policy, and it puts text into the page as text only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from verification.evidence import ProbeResult
from verification.html_parts import both, visible
from verification.html_tasks import kind_words

_SCRIPT = Path(__file__).with_name("report.js")
_FLIPS = {(True, False): "lost", (False, True): "gained"}
_LONGEST = 600  # characters of an answer; parity.json has them whole


def script() -> str:
    """The page's one script."""
    return _SCRIPT.read_text(encoding="utf-8")


def script_policy() -> str:
    """What the page's policy says about scripts: this one and no other."""
    digest = hashlib.sha256(script().encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def explorer(results: Sequence[ProbeResult]) -> str:
    """Show every sample, closed at first; without scripts parity.json has them."""
    if not results:
        return ""
    kinds = sorted({result.probe.kind for result in results})
    options = "".join(
        f'<label><input type="checkbox" value="{k}">{kind_words(k)}</label>' for k in kinds
    )
    shown = (
        f'<label><input type="checkbox" value="flip">{both("flipped", "翻转")}</label>'
        f'<label><input type="checkbox" value="other">{both("answers differ", "回答不同")}</label>'
    )
    data = json.dumps([_row(r) for r in results], ensure_ascii=False, separators=(",", ":"))
    # inside a script element only "<" could end it
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    columns = "".join(
        f'<th><button type="button" data-sort="{i}">{both(en, zh)}</button></th>' if i >= 0 else
        f"<th>{both(en, zh)}</th>"
        for i, en, zh in (
            (0, "Probe", "探针"), (1, "Kind", "题型"), (-1, "Question", "问题"),
            (-1, "Reference", "参考"), (-1, "Candidate", "候选"), (5, "Mean KL", "平均 KL"),
            (6, "Flip", "翻转"),
        )
    )  # fmt: skip
    return (
        f"<h2>{both('All samples', '全部样本')}</h2>"
        f'<details class="card explorer" id="explorer"><summary>'
        f"{both(f'{len(results)} samples', f'{len(results)} 个样本')}</summary>"
        f'<div class="filters"><label>{both("search", "搜索")} <input type="search"></label>'
        f"{shown}{options}</div>"
        f'<table class="samples"><thead><tr>{columns}</tr></thead><tbody></tbody></table>'
        f'<nav><button type="button" data-page="-1">←</button><span class="where"></span>'
        f'<button type="button" data-page="1">→</button></nav></details>'
        f'<script type="application/json" id="samples">{data}</script>'
    )


def _row(result: ProbeResult) -> list[object]:
    graded = result.reference_right is not None and result.candidate_right is not None
    flip = _FLIPS.get((bool(result.reference_right), bool(result.candidate_right)), "")
    return [
        result.probe.key,
        result.probe.kind,
        _cut(result.probe.question),
        _cut(result.reference.text),
        "" if result.identical else _cut(result.candidate.text),
        float(f"{result.kl_mean:.3g}"),
        flip if graded else "",
        int(result.identical),
    ]


def _cut(text: str) -> str:
    return visible(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")

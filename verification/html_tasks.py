"""The part of the HTML report that shows who was right: flip matrix and kinds of question."""

from __future__ import annotations

from collections.abc import Sequence

from verification.chinese import KINDS
from verification.evidence import ProbeResult, TaskResult
from verification.html_parts import both, escaped


def flips(results: Sequence[ProbeResult], tasks: Sequence[TaskResult]) -> str:
    """Show the two-by-two matrix of right and wrong, and a row per kind of question."""
    if not tasks:
        return ""
    head = (
        ("Kind", "题型"), ("n", "n"), ("Reference", "参考"), ("Candidate", "候选"),
        ("Right → wrong", "对→错"), ("Wrong → right", "错→对"),
        ("Difference, bound", "差值及下限"), ("McNemar p", "McNemar p"), ("Holm", "Holm"),
    )  # fmt: skip
    cells = "".join(
        f"<th{' class=number' if i else ''}>{both(en, zh)}</th>" for i, (en, zh) in enumerate(head)
    )
    lead = both(
        "Graded answers only. The bound is one-sided, 95 %, and draws whole pictures; p-values "
        "are exact and corrected by Holm's method; none of them proves parity.",
        "仅统计可评分的回答。下限为单侧 95 %，按整图重抽样；"
        "p 值为精确值并经 Holm 校正，均不能证明一致。",
    )
    return (
        f"<h2>{both('Who is right', '谁答对了')}</h2><p class=lead>{lead}</p>"
        f'<div class="beside">{_matrix(results)}<div class="card">'
        f'<table class="tasks"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(map(_row, tasks))}</tbody></table></div></div>"
    )


def _matrix(results: Sequence[ProbeResult]) -> str:
    counts = {(a, b): 0 for a in (True, False) for b in (True, False)}
    for result in results:
        if result.reference_right is not None and result.candidate_right is not None:
            counts[result.reference_right, result.candidate_right] += 1
    right, wrong = both("right", "对"), both("wrong", "错")
    ours, theirs = both("reference", "参考"), both("candidate", "候选")
    tones = {(True, False): "lost", (False, True): "gained"}

    def cell(a: bool, b: bool) -> str:
        tone = tones.get((a, b), "same")
        return f'<td class="{tone}">{counts[a, b]}</td>'

    return (
        '<table class="card matrix"><thead><tr><td></td>'
        f"<th>{theirs} {right}</th><th>{theirs} {wrong}</th>"
        "</tr></thead><tbody>"
        f"<tr><th>{ours} {right}</th>{cell(True, True)}{cell(True, False)}</tr>"
        f"<tr><th>{ours} {wrong}</th>{cell(False, True)}{cell(False, False)}</tr>"
        "</tbody></table>"
    )


def kind_words(kind: str) -> str:
    """A kind of question in both languages."""
    english = "text only" if kind == "text" else kind
    return both(escaped(english), escaped(KINDS.get(kind, kind)))


def _row(task: TaskResult) -> str:
    cells = (
        str(task.n),
        f"{task.reference_right / task.n:.1%}",
        f"{task.candidate_right / task.n:.1%}",
        str(task.lost),
        str(task.gained),
        f"{100 * task.difference:+.1f} (&gt; {100 * task.lower:+.1f})",
        f"{task.p_value:.3g}",
        f"{task.p_holm:.3g}",
    )
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr><td>{kind_words(task.name)}</td>{numbers}</tr>"

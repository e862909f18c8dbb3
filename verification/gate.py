"""Hold findings against a profile's limits: verdicts, margins, and one sentence that sums up."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_store.records import Measurement, Verdict
from verification.chinese import UNITS, in_chinese
from verification.evidence import Finding
from verification.measures import BY_CLAIM, Measure
from verification.profile import Limit, Profile

_ENDS = {
    "value": "", "upper": ", upper 95 %", "lower": ", lower 95 %", "one-sided": ", one-sided 95 %"
}  # fmt: skip
_STOPS = re.compile("[，、；]")
_SIGNS = {"at most": "≤", "at least": "≥", "more than": ">"}


@dataclass(frozen=True, slots=True)
class Judged:
    """One measurement with what the report adds to the record."""

    measure: Measure
    measurement: Measurement
    margin: float | None  # distance to the pass limit; negative is beyond it
    seconds: float

    @property
    def only_reported(self) -> bool:
        """Whether the value decides nothing: it has no limit."""
        return self.measurement.threshold is None and self.measurement.value is not None


def judge(
    profile: Profile,
    findings: Mapping[str, Finding],
    *,
    probes_run: int,
    seconds: Mapping[str, float],
) -> tuple[Judged, ...]:
    """Judge every measurement of the profile's claim; what was not found is skipped."""
    judged = []
    for measure in BY_CLAIM[profile.claim]:
        finding = findings.get(measure.name, Finding(None, note="not measured"))
        limit = profile.limits[measure.name]
        lacking = _lacking(measure, finding, limit, profile.probes.minimum, probes_run)
        made = _skipped(measure, finding, limit, lacking) if lacking else None
        measurement = made or _measured(measure, finding, limit)
        margin = None if lacking else _margin(measure, finding, limit)
        judged.append(Judged(measure, measurement, margin, seconds.get(measure.name, 0.0)))
    return tuple(judged)


def _lacking(
    measure: Measure, finding: Finding, limit: Limit, minimum: int, probes_run: int
) -> str:
    """Why nothing may be concluded; empty when the evidence is enough."""
    if finding.value is None:
        return finding.note or "not measured"
    if measure.from_probes and probes_run < minimum:
        return f"{probes_run} probes were run, {minimum} are needed"
    if finding.n < limit.min_n:
        return f"n is {finding.n}, {limit.min_n} are needed"
    return ""


def _skipped(measure: Measure, finding: Finding, limit: Limit, reason: str) -> Measurement:
    return Measurement(
        name=measure.name,
        value=None,
        unit=measure.unit,
        n=finding.n,
        verdict="skipped",
        threshold=_threshold(measure, limit),
        primary=limit.primary and finding.applies,
        note=reason,
    )


def _measured(measure: Measure, finding: Finding, limit: Limit) -> Measurement:
    assert finding.value is not None  # noqa: S101  `_lacking` has seen to it
    numbers = (finding.value, *(finding.interval or ()))
    finite = all(math.isfinite(number) for number in numbers)
    verdict = _verdict(measure, _judged_number(measure, finding), limit)
    return Measurement(
        name=measure.name,
        # JSON has no infinity, and what is not a number keeps no limit
        value=rounded(finding.value) if finite else str(finding.value),
        unit=measure.unit,
        n=finding.n,
        verdict=verdict if finite else "fail",
        threshold=_threshold(measure, limit),
        interval=None
        if finding.interval is None or not finite
        else (rounded(finding.interval[0]), rounded(finding.interval[1])),
        primary=limit.primary,
        note=finding.note,
    )


def rounded(value: float) -> float:
    """Six significant digits: more would be noise, and noise does not belong in a record."""
    return float(f"{value:.6g}")


def _judged_number(measure: Measure, finding: Finding) -> float:
    if finding.interval is not None and measure.side != "value":
        return finding.interval[1 if measure.side == "upper" else 0]  # else a lower end
    assert finding.value is not None  # noqa: S101
    return finding.value


def _verdict(measure: Measure, value: float, limit: Limit) -> Verdict:
    if limit.pass_at is None or _keeps(measure, value, limit.pass_at):
        return "pass"
    if limit.warn_at is not None and _keeps(measure, value, limit.warn_at):
        return "warn"
    return "fail"


def _keeps(measure: Measure, value: float, limit: float) -> bool:
    # written so that a NaN keeps nothing
    if measure.sense == "at most":
        return value <= limit
    return value > limit if measure.sense == "more than" else value >= limit


def _margin(measure: Measure, finding: Finding, limit: Limit) -> float | None:
    if limit.pass_at is None:
        return None
    value = _judged_number(measure, finding)
    if not math.isfinite(value):
        return None
    return rounded(limit.pass_at - value if measure.sense == "at most" else value - limit.pass_at)


def _threshold(measure: Measure, limit: Limit) -> str | None:
    if limit.pass_at is None:
        return None
    sign = _SIGNS[measure.sense]
    end = _ENDS[measure.side]
    warn = "" if limit.warn_at is None else f" (warn {sign} {limit.warn_at:g})"
    return f"{sign} {limit.pass_at:g}{end}{warn}"


@dataclass(frozen=True, slots=True)
class Summary:
    """The verdict in one sentence, in both languages."""

    verdict: Verdict  # "skipped" stands for: no verdict, evidence is missing
    en: str
    zh: str


def summarize(verdict: Verdict, judged: Sequence[Judged], claim: str) -> Summary:
    """Say what was found; a failure names the measurement that weighs most."""
    wanted = [row for row in judged if row.measurement.verdict == verdict]
    if verdict == "skipped":
        wanted = [row for row in wanted if row.measurement.primary]
    first = next((row for row in wanted if row.measurement.primary), wanted[0] if wanted else None)
    claim_zh = {"converted": "转换无损", "quantized": "量化可用"}[claim]
    if verdict == "pass" or first is None:
        kept = sum(row.measurement.verdict == "pass" and row.margin is not None for row in judged)
        skipped = sum(row.measurement.verdict == "skipped" for row in judged)
        left_out = f"; {skipped} could not be measured" if skipped else ""
        left_out_zh = f"；{skipped} 项无法测量" if skipped else ""
        return Summary(
            verdict,
            f"The claim “{claim}” holds: all {kept} limits are kept{left_out}.",
            f"“{claim_zh}”成立：{kept} 项限值全部满足{left_out_zh}。",
        )
    more = f", and {len(wanted) - 1} more" if len(wanted) > 1 else ""
    more_zh = f"，另有 {len(wanted) - 1} 项" if len(wanted) > 1 else ""
    said, said_zh = _said(first)
    if verdict == "skipped":
        return Summary(
            verdict,
            f"No verdict on “{claim}”: evidence is missing for {said}{more}.",
            f"无法判定“{claim_zh}”：{said_zh}{more_zh}。",
        )
    if verdict == "warn":
        return Summary(
            verdict,
            f"The claim “{claim}” holds with a warning: {said}{more}.",
            f"“{claim_zh}”成立，但有警告：{said_zh}{more_zh}。",
        )
    return Summary(
        verdict,
        f"The claim “{claim}” does not hold: {said}{more}.",
        f"“{claim_zh}”不成立：{said_zh}{more_zh}。",
    )


def _said(row: Judged) -> tuple[str, str]:
    m = row.measurement
    if m.verdict == "skipped":
        why = in_chinese(m.note)
        return f"“{row.measure.en}” ({m.note})", f"“{row.measure.zh}”缺少证据（{why}）"
    limit = m.threshold or ""
    # a list of tensors is for the table; the sentence names the first
    first, _, more = m.note.partition(", ")
    where = f" ({first}{', …' if more else ''})" if m.note else ""
    first_zh, *rest = _STOPS.split(in_chinese(m.note), maxsplit=1)
    where_zh = f"（{first_zh}{'，…' if rest else ''}）" if m.note else ""
    return (
        f"“{row.measure.en}” is {shown(m)}, and the limit is {limit}{where}",
        f"“{row.measure.zh}”为 {shown_in_chinese(m)}，限值为 {in_chinese(limit)}{where_zh}",
    )


_BARE = frozenset({"share", "ratio", "relative"})  # units that only say how to read the number


def shown(m: Measurement) -> str:
    """The value as people read it: four digits, and the unit where it is one."""
    if m.value is None:
        return "–"
    number = f"{m.value:.4g}" if isinstance(m.value, float | int) else str(m.value)
    return number if m.unit in _BARE else f"{number} {m.unit}".rstrip()


def shown_in_chinese(m: Measurement) -> str:
    """The value as `shown` has it, with a Chinese unit."""
    said = shown(m)
    return (
        said.removesuffix(m.unit) + UNITS[m.unit]
        if m.unit in UNITS and m.value is not None
        else said
    )

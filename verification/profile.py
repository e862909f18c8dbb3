"""Profiles: the limits that a claim is held against, one TOML section per measurement.

    schema = "ferry.profile/1"
    name = "default"

    [quantized.probes]
    samples = 300        # dialogues to run
    minimum = 300        # fewer, and what they measure is skipped
    new_tokens = 48

    [quantized.kl_mean]
    pass = 0.05
    warn = 0.08          # from here on it fails; without it, `pass` is the limit
    primary = true
    min_n = 3000

Every measurement of a claim needs its section, so that no limit is forgotten in silence; one that
decides nothing says `report_only = true` instead of `pass`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.canonical import canonical_digest
from verification.errors import ProfileError
from verification.measures import BY_CLAIM, Measure

SCHEMA = "ferry.profile/1"
_BUILT_IN = Path(__file__).parent / "profiles"
_LIMIT_KEYS = {"pass", "warn", "primary", "min_n", "report_only"}


@dataclass(frozen=True, slots=True)
class Limit:
    """What one measurement is held against; `pass_at` is None for one that is only reported."""

    pass_at: float | None
    warn_at: float | None
    primary: bool
    min_n: int


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """How many probes to run, and how far."""

    samples: int
    minimum: int
    new_tokens: int
    witness: int  # probes of each sort that the independent forward and the traces run
    yardstick: int  # probes that plain rounding is measured on


@dataclass(frozen=True, slots=True)
class Profile:
    """The limits of one claim."""

    name: str
    claim: str
    probes: ProbePlan
    limits: Mapping[str, Limit]
    table: Mapping[str, Any]  # as read, for the record

    @property
    def digest(self) -> str:
        return canonical_digest(self.table)


def load_profile(named: str, claim: str) -> Profile:
    """Read a profile: a TOML file, or a built-in one by name.

    Raises:
        ProfileError: no such file, not TOML, an unknown key, a missing section, a bad limit.
    """
    built_in = _BUILT_IN / f"{named}.toml"
    path = built_in if named.isidentifier() and built_in.is_file() else Path(named)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in _BUILT_IN.glob("*.toml")))
        raise ProfileError(named, f"cannot be read; built-in profiles are {known}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(named, f"is not TOML: {error}") from error
    return parse_profile(table, claim, where=path.name)


def parse_profile(table: Mapping[str, Any], claim: str, *, where: str) -> Profile:
    """Check a profile's table and take one claim's limits from it.

    Raises:
        ProfileError: see `load_profile`; the other claims' sections are checked too.
    """
    _only(table, {"schema", "name", *BY_CLAIM}, where)
    if table.get("schema") != SCHEMA:
        raise ProfileError(where, f"schema is {table.get('schema')!r}, not {SCHEMA!r}")
    if not isinstance(table.get("name"), str):
        raise ProfileError(where, "name is missing")
    for other in BY_CLAIM:
        if other in table:
            _claim(_table(table[other], f"{where} [{other}]"), other, where)
    if claim not in table:
        raise ProfileError(where, f"section [{claim}] is missing")
    probes, limits = _claim(table[claim], claim, where)
    if not any(limit.primary for limit in limits.values()):
        raise ProfileError(f"{where} [{claim}]", "no measurement is primary: nothing would decide")
    return Profile(table["name"], claim, probes, limits, dict(table[claim]))


def _claim(table: Mapping[str, Any], claim: str, where: str) -> tuple[ProbePlan, dict[str, Limit]]:
    measures = {measure.name: measure for measure in BY_CLAIM[claim]}
    _only(table, {"probes", *measures}, f"{where} [{claim}]")
    for name in ("probes", *measures):
        if name not in table:
            raise ProfileError(where, f"section [{claim}.{name}] is missing")
    probes = _probes(table["probes"], f"{where} [{claim}.probes]")
    limits = {
        name: _limit(_table(table[name], f"{where} [{claim}.{name}]"), measure, where)
        for name, measure in measures.items()
    }
    return probes, limits


def _probes(table: Any, where: str) -> ProbePlan:
    keys = ("samples", "minimum", "new_tokens", "witness", "yardstick")
    _only(_table(table, where), set(keys), where)
    values = []
    for key in keys:
        value = table.get(key)
        if type(value) is not int or value < 1:
            raise ProfileError(where, f"{key} wants a whole number above 0, not {value!r}")
        values.append(value)
    return ProbePlan(*values)


def _limit(table: Mapping[str, Any], measure: Measure, where: str) -> Limit:
    where = f"{where} [{measure.name}]"
    _only(table, _LIMIT_KEYS, where)
    primary, min_n = table.get("primary", False), table.get("min_n", 1)
    reported = table.get("report_only", False)
    if type(primary) is not bool or type(reported) is not bool:
        raise ProfileError(where, "primary and report_only want true or false")
    if type(min_n) is not int or min_n < 1:
        raise ProfileError(where, f"min_n wants a whole number above 0, not {min_n!r}")
    passes, warns = (_number(table.get(key), f"{where} {key}") for key in ("pass", "warn"))
    if (passes is None) != reported:
        raise ProfileError(where, "wants either `pass = …` or `report_only = true`")
    if measure.sense == "report" and not reported:
        raise ProfileError(where, "has no good direction; it is report_only")
    if passes is not None and warns is not None:
        slack = warns - passes if measure.sense == "at most" else passes - warns
        if slack < 0:
            raise ProfileError(where, f"warn = {warns:g} is stricter than pass = {passes:g}")
    if passes is None and (primary or warns is not None):
        raise ProfileError(where, "without a limit it can neither be primary nor warn")
    return Limit(passes, warns, primary, min_n)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ProfileError(where, f"wants a number, not {value!r}")
    return float(value)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProfileError(where, "wants a section")
    return value


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ProfileError(where, f"unknown key {key!r}")

"""Profiles: what is shipped holds together, and what is wrong is refused in one line."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import verification
from verification.errors import ProfileError
from verification.measures import BY_CLAIM
from verification.profile import load_profile, parse_profile

_PROFILES = Path(next(iter(verification.__path__))) / "profiles"


def _default() -> dict[str, Any]:
    return tomllib.loads((_PROFILES / "default.toml").read_text(encoding="utf-8"))


def test_the_default_limits_of_a_quantized_claim_are_those_of_the_gate() -> None:
    limits = load_profile("default", "quantized").limits

    assert (limits["kl_mean"].pass_at, limits["kl_mean"].warn_at) == (0.05, 0.08)
    assert (limits["kl_p99"].pass_at, limits["kl_p99"].warn_at) == (0.6, 1.0)
    assert (limits["top1_agreement"].pass_at, limits["top1_agreement"].warn_at) == (0.91, 0.88)
    assert (limits["ppl_ratio"].pass_at, limits["ppl_ratio"].warn_at) == (1.03, 1.05)
    assert (limits["answer_flips"].pass_at, limits["answer_flips"].warn_at) == (0.08, 0.12)
    difference = limits["accuracy_difference"]
    assert (difference.pass_at, difference.warn_at) == (-1.0, -2.0)
    assert limits["box_iou_median"].pass_at == 0.9
    assert limits["box_hit_agreement"].pass_at == 0.95


@pytest.mark.parametrize("claim", list(BY_CLAIM))
def test_the_demo_profile_relaxes_boxes_answers_and_counts_and_nothing_else(claim: str) -> None:
    default, demo = load_profile("default", claim).limits, load_profile("demo", claim).limits

    changed = {
        name
        for name, limit in default.items()
        if (limit.pass_at, limit.warn_at, limit.primary)
        != (demo[name].pass_at, demo[name].warn_at, demo[name].primary)
    }

    assert all(name.startswith(("box_", "answer", "accuracy", "tasks")) for name in changed)


def test_an_unknown_key_is_refused_by_name() -> None:
    table = _default()
    table["quantized"]["kl_mean"]["pas"] = 0.05

    with pytest.raises(ProfileError, match="unknown key 'pas'"):
        parse_profile(table, "quantized", where="mine.toml")


def test_a_missing_section_is_refused_even_for_the_other_claim() -> None:
    table = _default()
    del table["converted"]["logits_max_delta"]

    with pytest.raises(ProfileError, match=r"\[converted.logits_max_delta\] is missing"):
        parse_profile(table, "quantized", where="mine.toml")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({}, "wants either"),
        ({"pass": "0.05"}, "wants a number"),
        ({"pass": float("nan")}, "wants a number"),
        ({"pass": 0.08, "warn": 0.05}, "stricter than pass"),
        ({"pass": 0.05, "min_n": 0}, "min_n"),
        ({"report_only": True, "primary": True}, "neither be primary nor warn"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(limit: dict[str, Any], message: str) -> None:
    table = copy.deepcopy(_default())
    table["quantized"]["kl_mean"] = limit

    with pytest.raises(ProfileError, match=message):
        parse_profile(table, "quantized", where="mine.toml")


def test_a_file_that_is_not_there_names_the_built_in_ones() -> None:
    with pytest.raises(ProfileError, match="built-in profiles are default, demo"):
        load_profile("nowhere.toml", "quantized")


def test_a_profile_that_decides_nothing_is_refused() -> None:
    table = _default()
    sections = {name: {"report_only": True} for name in table["quantized"] if name != "probes"}
    table["quantized"] = {"probes": table["quantized"]["probes"], **sections}

    with pytest.raises(ProfileError, match="no measurement is primary"):
        parse_profile(table, "quantized", where="x.toml")

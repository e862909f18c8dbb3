"""Patterns over module names, as flags and as what other readers match."""

from __future__ import annotations

import re

import pytest

from model_store.errors import UsageError
from quantization.module_rules import as_regex, chosen, fits, parse_rules
from quantization.options import GptqConfig
from qwen_vl.int4 import QuantizedFormat

NAMES = [f"model.layers.{n}.mlp.{part}_proj" for n in (0, 1, 11) for part in ("up", "down")]
PATTERNS = ("*.down_proj", "down_proj", "layers.1.*", "mlp.up_proj", "*", NAMES[0], "lm_head")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_regular_expression_means_what_the_pattern_means(pattern: str) -> None:
    for name in [*NAMES, "lm_head", "model.lm_head_norm"]:
        assert bool(re.match(as_regex(pattern), name)) == fits(name, pattern), name


def test_what_is_excluded_must_be_there() -> None:
    assert chosen(NAMES, ["layers.1.*", "down_proj"]) == [NAMES[0], NAMES[4]]
    with pytest.raises(UsageError, match="names no linear"):
        chosen(NAMES, ["layers.7.*"])


def test_the_first_rule_that_fits_counts() -> None:
    config = GptqConfig(modules=("layers.0.*:bits=8", "*.down_proj:bits=3,group_size=-1"))

    found = [config.for_module(name) for name in NAMES[:4]]

    assert [(one.bits, one.group_size) for one in found] == [(8, 128), (8, 128), (4, 128), (3, -1)]


def test_our_reader_follows_the_table_that_is_written() -> None:
    rules = parse_rules(["*.down_proj:bits=8,group_size=64"])
    table = {"-:.*vision.*": {}, f"+:{as_regex(rules[0].pattern)}": {"bits": 8, "group_size": 64}}
    form = QuantizedFormat.from_config({"bits": 4, "group_size": 128, "dynamic": table})

    assert (form.of(NAMES[1]).bits, form.of(NAMES[1]).group_size) == (8, 64)
    assert (form.of(NAMES[0]).bits, form.of(NAMES[0]).group_size) == (4, 128)


@pytest.mark.parametrize("text", ["", "x", "x:bits", "x:bits=5", "x:group_size=0", "x:rows=2"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no rule"):
        parse_rules([text])

"""One dataclass is flags, recipe table, command line and provenance."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import UsageError
from model_store.options import (
    OptionValueError,
    UnknownOptionError,
    add_options,
    from_args,
    from_table,
    option,
    provenance,
    to_argv,
)


@dataclass(frozen=True, slots=True)
class Counted:
    count: int = option("how many", default=1)


def parsed_count(text: str) -> Counted:
    parser = argparse.ArgumentParser()
    add_options(parser, Counted)
    return from_args(Counted, parser.parse_args([f"--count={text}"]))


@dataclass(frozen=True, slots=True)
class Options:
    model: str = option("what to work on", flag="")
    bits: int = option("bits per weight", default=4, choices=(2, 4, 8))
    damping: float = option("damping", default=0.01)
    sym: bool = option("symmetric", default=True)
    act_order: bool = option("act order", default=False)
    into: Path | None = option("target", default=None, recorded=False)
    keep: tuple[str, ...] = option("names to keep", default=())


def parsed(*argv: str) -> Options:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Options)
    return from_args(Options, parser.parse_args(argv))


EXAMPLES = (
    Options("m"),
    Options("m", bits=8, damping=0.5, sym=False, act_order=True, into=Path("x"), keep=("a", "b")),
    Options("-m", damping=-1.0, keep=("-a",)),
)


def test_flags_have_the_defaults_of_the_class() -> None:
    assert parsed("m") == Options("m")


@pytest.mark.parametrize("options", EXAMPLES)
def test_a_command_line_parses_back_to_its_options(options: Options) -> None:
    assert parsed(*to_argv(options)) == options


def test_a_table_and_flags_give_the_same_options() -> None:
    table = {"model": "m", "act-order": True, "damping": 1, "into": "x", "keep": ["a"]}

    options = from_table(Options, table)

    assert options == parsed("m", "--act-order", "--damping", "1", "--into", "x", "--keep", "a")
    assert isinstance(options.damping, float)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"model": 3},
        {"model": "m", "bits": 3},
        {"model": "m", "bits": True},
        {"model": "m", "bits": "4"},
        {"model": "m", "sym": 1},
        {"model": "m", "keep": "a"},
        {"model": "m", "keep": [1]},
    ],
)
def test_a_table_of_wrong_values_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(OptionValueError):
        from_table(Options, table)


@pytest.mark.parametrize("number", [2**53, -(2**53)])
def test_a_number_that_no_manifest_can_hold_is_refused_at_once(number: int) -> None:
    with pytest.raises(UsageError, match="beyond"):
        parsed_count(str(number))
    with pytest.raises(UsageError, match="beyond"):
        from_table(Counted, {"count": number})


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownOptionError) as caught:
        from_table(Options, {"model": "m", "bit": 4})

    assert caught.value.key == "bit"
    assert "bits" in caught.value.hint


def test_provenance_leaves_out_what_cannot_change_the_result() -> None:
    assert provenance(Options("m", into=Path("/home/x"), keep=("a",))) == {
        "model": "m", "bits": 4, "damping": 0.01, "sym": True, "act_order": False, "keep": ["a"],
    }  # fmt: skip

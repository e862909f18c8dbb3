"""One frozen dataclass per step: its flags, its recipe table and its provenance come from it.

    @dataclass(frozen=True, slots=True)
    class GptqConfig:
        model: str = option("snapshot folder or repo name", default="qwen/Qwen-VL-Chat", flag="")
        bits: int = option("bits per weight", default=4, choices=(2, 3, 4, 8))

A field's flag is its name with dashes; `flag=""` makes it positional. Understood types: str, int,
float, bool, Path, any of them `| None`, and `tuple[str, ...]` (a flag given several times).
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from model_store.errors import UsageError

T = TypeVar("T")
_META = "option"
_LARGEST = 2**53 - 1  # of what manifests and records, being RFC 8785, can hold


class UnknownOptionError(UsageError):
    """A recipe table has a key that the step does not know."""

    def __init__(self, key: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown key {key!r}", hint=f"Known keys: {', '.join(known)}.")
        self.key = key


class OptionValueError(UsageError):
    """A recipe value of the wrong type or outside its choices."""

    hint = "The step's command explains its options: see its --help."


@dataclasses.dataclass(frozen=True, slots=True)
class _Meta:
    help: str
    flag: str | None
    choices: tuple[Any, ...] | None
    metavar: str | None
    recorded: bool


def option(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    flag: str | None = None,
    choices: tuple[Any, ...] | None = None,
    metavar: str | None = None,
    recorded: bool = True,
) -> Any:
    """Declare a field of an options class.

    Args:
        help: one line for --help.
        default: as in a dataclass; without one the option is required.
        flag: "" for a positional argument; by default `--name-with-dashes`.
        choices: the values allowed.
        metavar: the name of the value in --help.
        recorded: False for what does not change the result (paths, worker counts): it stays out
            of provenance, so that the same work on two machines has the same manifest.
    """
    meta = _Meta(help, flag, choices, metavar, recorded)
    return dataclasses.field(default=default, metadata={_META: meta})


def _fields(cls: type[Any]) -> list[tuple[dataclasses.Field[Any], _Meta, Any]]:
    hints = typing.get_type_hints(cls)
    return [
        (field, field.metadata[_META], hints[field.name])
        for field in dataclasses.fields(cls)
        if _META in field.metadata
    ]


def _plain_type(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _is_repeated(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def add_options(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Add one flag or positional argument per option of `cls`."""
    for field, meta, hint in _fields(cls):
        required = field.default is dataclasses.MISSING
        default = None if required else field.default
        plain = _plain_type(hint)
        keywords: dict[str, Any] = {"help": _help(meta, default), "default": default}
        if plain is bool:
            keywords["action"] = argparse.BooleanOptionalAction if default else "store_true"
        elif _is_repeated(plain):
            keywords |= {"action": "append", "metavar": meta.metavar, "default": None}
        else:
            keywords |= {"type": plain, "metavar": meta.metavar, "choices": meta.choices}
        if meta.flag == "":
            parser.add_argument(field.name, nargs=None if required else "?", **keywords)
        else:
            flag = meta.flag or "--" + field.name.replace("_", "-")
            parser.add_argument(flag, dest=field.name, required=required, **keywords)


def _help(meta: _Meta, default: Any) -> str:
    if default in (None, False, (), "") or default is True:
        return meta.help
    return f"{meta.help} (default: {default})"


def from_args(cls: type[T], args: argparse.Namespace) -> T:
    """Build the options from parsed arguments."""
    values: dict[str, Any] = {}
    for field, _, hint in _fields(cls):
        value = getattr(args, field.name)
        if _is_repeated(_plain_type(hint)):
            value = tuple(value) if value is not None else field.default
        if type(value) is int and abs(value) > _LARGEST:
            raise UsageError(f"{field.name} is {value}, beyond ±(2^53 - 1)")
        values[field.name] = value
    return cls(**values)


def from_table(cls: type[T], table: Mapping[str, Any]) -> T:
    """Build the options from a recipe's table; keys may use dashes or underscores.

    Raises:
        UnknownOptionError: a key that is no option.
        OptionValueError: a value of the wrong type, outside its choices, or missing.
    """
    by_name = {field.name: (field, meta, hint) for field, meta, hint in _fields(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in by_name:
            raise UnknownOptionError(key, sorted(by_name))
        _, meta, hint = by_name[name]
        values[name] = _checked(key, value, meta, hint)
    for name, (field, _, _) in by_name.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise OptionValueError(f"key {name!r} is missing", hint="Add it to the recipe's table.")
    return cls(**values)


def _checked(key: str, value: Any, meta: _Meta, hint: Any) -> Any:
    plain = _plain_type(hint)
    if _is_repeated(plain):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise OptionValueError(f"key {key!r} wants a list of strings, not {value!r}")
        return tuple(value)
    if plain is Path and isinstance(value, str):
        return Path(value)
    if plain is float and type(value) is int:
        value = float(value)
    if type(value) is not plain:
        raise OptionValueError(f"key {key!r} wants {plain.__name__}, not {value!r}")
    if type(value) is int and abs(value) > _LARGEST:
        raise OptionValueError(f"key {key!r} is {value}, beyond ±(2^53 - 1)")
    if meta.choices and value not in meta.choices:
        raise OptionValueError(f"key {key!r} is {value!r}, not one of {meta.choices}")
    return value


def provenance(options: Any) -> dict[str, Any]:
    """The options as JSON for a manifest's lineage; leaves out what cannot change the result."""
    return {
        field.name: _jsonable(getattr(options, field.name))
        for field, meta, _ in _fields(type(options))
        if meta.recorded
    }


def to_argv(options: Any) -> list[str]:
    """The command line that parses back to `options`."""
    argv: list[str] = []
    positional: list[str] = []
    for field, meta, _ in _fields(type(options)):
        value = getattr(options, field.name)
        flag = meta.flag or "--" + field.name.replace("_", "-")
        if meta.flag == "":
            positional += [] if value is None else [str(value)]
        elif value is None or value == field.default:
            continue
        elif isinstance(value, bool):
            argv.append(flag if value else "--no-" + flag.removeprefix("--"))
        elif isinstance(value, tuple):
            argv += [part for item in value for part in _flag_and_value(flag, item)]
        else:
            argv += _flag_and_value(flag, str(value))
    return [*argv, "--", *positional] if positional else argv


def _flag_and_value(flag: str, value: str) -> list[str]:
    # argparse would take a separate value with a dash for another flag
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    return list(value) if isinstance(value, tuple) else value

"""Which linears are quantized, and which of them in their own way: patterns over names.

A pattern is a shell pattern for the whole name (`*.layers.0.*`), or for its last parts
(`down_proj`, `mlp.*`).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model_store.errors import UsageError


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name, or its end, matches the pattern."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")


def as_regex(pattern: str) -> str:
    """The pattern as the regular expression that other readers' tables hold."""
    body = fnmatch.translate(pattern)[len("(?s:") : -len(r")\Z")]  # its ends vary with Python
    return rf"(.*\.)?{body}$"


def chosen(names: Iterable[str], exclude: Sequence[str]) -> list[str]:
    """The names that no pattern excludes.

    Raises:
        UsageError: a pattern that excludes nothing: a slip of the pen, most likely.
    """
    names = list(names)
    for pattern in exclude:
        if not any(fits(name, pattern) for name in names):
            raise UsageError(
                f"--exclude {pattern!r} names no linear of this model",
                hint=f"Its linears look like {names[0]}." if names else None,
            )
    return [name for name in names if not any(fits(name, pattern) for pattern in exclude)]


@dataclass(frozen=True, slots=True)
class ModuleRule:
    """Bits and group size of the linears that a pattern names; None keeps the general value."""

    pattern: str
    bits: int | None = None
    group_size: int | None = None

    def fits(self, name: str) -> bool:
        return fits(name, self.pattern)


_RULE = re.compile(r"(?P<pattern>[^:]+):(?P<pairs>[a-z_]+=-?\d+(,[a-z_]+=-?\d+)*)")


def parse_rules(texts: Sequence[str]) -> list[ModuleRule]:
    """Read rules such as `*.down_proj:bits=8,group_size=64`.

    Raises:
        UsageError: naming the text that is no rule.
    """
    rules = []
    for text in texts:
        found = _RULE.fullmatch(text)
        pairs = dict(p.split("=") for p in found["pairs"].split(",")) if found else {}
        values = {key: int(value) for key, value in pairs.items()}
        if (
            found is None
            or not values.keys() <= {"bits", "group_size"}
            or values.get("bits", 4) not in (2, 3, 4, 8)
            or not (values.get("group_size", 1) == -1 or values.get("group_size", 1) > 0)
        ):
            raise UsageError(
                f"{text!r} is no rule for modules",
                hint="Like this: '*.down_proj:bits=8,group_size=64'.",
            )
        rules.append(ModuleRule(found["pattern"], **values))
    return rules

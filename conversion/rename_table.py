"""Rename by a user's TOML table: rules and drops, every name accounted for."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conversion.errors import RuleTableError
from conversion.opened import OpenedSnapshot
from conversion.options import RenameOptions, parse_size
from conversion.qwen_vl_files import SideFiles
from conversion.rewriting import Result, Rewrite, header_metadata
from conversion.running import run_draft
from conversion.steps import format_of, rewrite_of, step_of
from model_store.checkpoint import TensorInfo
from model_store.errors import UnmappedTensorError, UsageError, WeightMapError
from model_store.progress import Progress
from model_store.weight_rules import Move, Op, Rule, WeightMap, split_index

_LARGEST = 4_000_000
_OPS = (Op.RENAME, Op.ROWS, Op.COLUMNS, Op.TRANSPOSE)
_RULE_KEYS = {"source", "sources", "target", "targets", "op"}
_DROP_KEYS = {"name", "reason"}


@dataclass(frozen=True, slots=True)
class RuleTable:
    """Rules that rename or split, rules that fuse (kept backwards), and drops with reasons."""

    forward: WeightMap
    fusing: WeightMap
    drops: Mapping[str, str]  # template -> reason

    def plan(self, infos: Mapping[str, TensorInfo]) -> tuple[list[Move], dict[str, str]]:
        """Return the moves, and the dropped tensors with their reasons.

        Raises:
            UnmappedTensorError: a name that no rule and no drop names.
            WeightMapError: tensors that do not split or fuse as the rules say.
        """
        fused = {target for rule in self.fusing.rules for target in rule.targets}
        dropped: dict[str, str] = {}
        there: dict[str, TensorInfo] = {}
        apart: dict[str, TensorInfo] = {}
        for name, info in infos.items():
            template, index = split_index(name)
            if template in self.drops or name in self.drops:
                dropped[name] = self.drops.get(template) or self.drops[name]
            elif template in fused and bool(index) == ("{}" in template):
                apart[name] = info
            else:
                there[name] = info
        moves = [*self.forward.forward(there, heads=1), *self.fusing.backward(apart, heads=1)]
        return moves, dropped


def read_rules(path: Path) -> RuleTable:
    """Read a table.

    Raises:
        RuleTableError: not TOML, an unknown key, or rules that contradict each other; with the line
            or the rule.
    """
    if not path.is_file():
        raise UsageError(f"--rules {path} is no file", hint="Name a TOML table of rules.")
    if path.stat().st_size > _LARGEST:
        raise RuleTableError(f"{path} is too large for a table of rules")
    return parse_rules(path.read_bytes(), name=path.name)


def parse_rules(data: bytes, *, name: str) -> RuleTable:
    """Parse a table; see `read_rules`."""
    try:
        text = data.decode("utf-8")
        value = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RuleTableError(f"{name} is not TOML: {error}") from error
    unknown = sorted(value.keys() - {"rule", "drop"})
    if unknown:
        raise RuleTableError(f"{name} has the unknown table {unknown[0]!r}; known: rule, drop")
    forward: list[Rule] = []
    fusing: list[Rule] = []
    for where, table in _tables(value, "rule", text, name):
        rule, fuses = _rule(table, where)
        (fusing if fuses else forward).append(rule)
    drops = dict(_drop(table, where) for where, table in _tables(value, "drop", text, name))
    if not forward and not fusing:
        raise RuleTableError(f"{name} has no [[rule]]")
    _check_once(forward, fusing, drops, name)
    return RuleTable(WeightMap(tuple(forward)), WeightMap(tuple(fusing)), drops)


def rename(
    folder: Path, target: Path, options: RenameOptions, *, progress: Progress | None = None
) -> Result:
    """Write any snapshot under the names of a user's table.

    Raises:
        RuleTableError: a table that contradicts itself.
        WeightMapError: a tensor that no rule names, or that does not fit its rule.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_rename, options, progress=progress)


def draft_rename(opened: OpenedSnapshot, options: RenameOptions) -> Rewrite:
    """Plan the renaming; see `rename`."""
    size = parse_size(options.max_shard_size)
    table = read_rules(options.rules)
    try:
        moves, dropped = table.plan(opened.infos())
    except UnmappedTensorError as error:
        error.hint = f"Add a rule for it to {options.rules.name}, or a [[drop]] with the reason."
        raise
    if not moves:
        raise WeightMapError("every tensor is dropped: nothing would be left")
    digest = hashlib.sha256(options.rules.read_bytes()).hexdigest()
    facts = {"rules": digest, "dropped": dropped}
    step = step_of("rename", options, opened, moves, facts)
    summary = (
        "Changed by modelferry: tensors renamed, split and joined by a table of rules; "
        "every value that is there is unchanged."
    )
    made = rewrite_of(
        step, moves, format_of(opened), size, SideFiles({}, opened.companions()), summary
    )
    notes = tuple(f"`{name}` was dropped: {reason}" for name, reason in dropped.items())
    return replace(made, notes=notes, metadata=header_metadata(opened, options.metadata))


def _tables(
    value: Mapping[str, Any], kind: str, text: str, name: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each table of a kind, with words that say where it is."""
    tables = value.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RuleTableError(f"{name}: write [[{kind}]], once for each")
    header = re.compile(rf"\s*\[\[\s*{kind}\s*\]\]")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if header.match(line)]
    for number, table in enumerate(tables, 1):
        line = f"line {lines[number - 1]}, " if len(lines) == len(tables) else ""
        yield f"{name}, {line}{kind} {number}", table


def _rule(table: Mapping[str, Any], where: str) -> tuple[Rule, bool]:
    unknown = sorted(table.keys() - _RULE_KEYS)
    if unknown:
        raise RuleTableError(f"{where}: unknown key {unknown[0]!r}")
    sources = _names(table, "source", where)
    targets = _names(table, "target", where)
    op = table.get("op", "rename")
    if op not in {known.value for known in _OPS}:
        known = ", ".join(each.value for each in _OPS)
        raise RuleTableError(f"{where}: unknown op {op!r}; known: {known}")
    if len(sources) > 1 and len(targets) > 1:
        raise RuleTableError(f"{where} ({sources[0]!r}): several sources and several targets")
    fuses = len(sources) > 1
    single, several = (targets[0], sources) if fuses else (sources[0], targets)
    if (len(several) == 1) != (op in (Op.RENAME, Op.TRANSPOSE)):
        raise RuleTableError(f"{where} ({sources[0]!r}): op {op!r} does not fit this many names")
    try:
        return Rule(single, several, Op(op)), fuses
    except WeightMapError as error:
        raise RuleTableError(
            f"{where} ({sources[0]!r}): '{{}}' stands once in every name of a rule, or in none"
        ) from error


def _names(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    if (key in table) == (f"{key}s" in table):
        raise RuleTableError(f"{where}: needs {key} or {key}s, and not both")
    value = [table[key]] if key in table else table[f"{key}s"]
    if not isinstance(value, list) or not value:
        raise RuleTableError(f"{where}: {key}s is not a list of names")
    for name in value:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise RuleTableError(f"{where}: {str(name)[:80]!r} is no tensor's name")
        # the template is filled by str.format
        if "{" in name.replace("{}", "") or "}" in name.replace("{}", ""):
            raise RuleTableError(f"{where}: {name!r} has a brace that is not '{{}}'")
    return tuple(value)


def _drop(table: Mapping[str, Any], where: str) -> tuple[str, str]:
    if table.keys() != _DROP_KEYS or not all(
        isinstance(text, str) and text.strip() for text in table.values()
    ):
        raise RuleTableError(f"{where}: needs exactly a name and a reason")
    return table["name"], table["reason"]


def _check_once(
    forward: list[Rule], fusing: list[Rule], drops: Mapping[str, str], name: str
) -> None:
    seen: set[str] = set()
    made: set[str] = set()
    reads = [rule.source for rule in forward]
    reads += [target for rule in fusing for target in rule.targets]
    makes = [target for rule in forward for target in rule.targets]
    makes += [rule.source for rule in fusing]
    for what, names, known in (("read", [*reads, *drops], seen), ("written", makes, made)):
        for each in names:
            if each in known:
                raise RuleTableError(f"{name}: {each!r} is {what} by two rules")
            known.add(each)

"""Recipe: the ordered steps of a run, read from TOML and checked before anything starts.

A string in a step's options may name an earlier step's result: `{native}` becomes that folder.
`{work}` is the run's folder and `{python}` the interpreter.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import UsageError
from pipeline.errors import RecipeError
from pipeline.steps import KINDS, StepKind, load_options

_NAME = re.compile(r"[a-z][a-z0-9-]*\Z")
REFERENCE = re.compile(r"\{([a-z][a-z0-9-]*)\}")
BUILT_IN = frozenset({"work", "python"})
_RECIPE_KEYS = {"name", "work", "home", "step", "closing"}
_STEP_KEYS = {"name", "uses", "options"}


@dataclass(frozen=True, slots=True)
class RecipeStep:
    """One step: its name, the kind of work, and the options table as written."""

    name: str
    kind: StepKind
    table: Mapping[str, Any]

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the earlier steps whose results this one reads, in order of appearance."""
        found = [name for value in self.table.values() for name in _names(value)]
        return tuple(dict.fromkeys(name for name in found if name not in BUILT_IN))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in order, the folder they work in, and what to say at the end."""

    name: str
    work: Path
    steps: tuple[RecipeStep, ...]
    home: Path | None = None  # FERRY_HOME of the run; the user's own when None
    closing: str = ""


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _names(item)]
    return REFERENCE.findall(value) if isinstance(value, str) else []


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe; every step's options are parsed, nothing is run.

    Raises:
        RecipeError: not TOML, an unknown key or kind, a reference to no earlier step.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist", hint="Name a recipe file.") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    _check_keys(table, _RECIPE_KEYS, where=path.name)
    steps: list[RecipeStep] = []
    for number, raw in enumerate(_list(table, "step", path), 1):
        steps.append(_read_step(raw, steps, where=f"{path.name}, step {number}"))
    home = _text(table, "home", path.name) if "home" in table else None
    if home is not None and (Path(home).is_absolute() or ".." in Path(home).parts):
        raise RecipeError(f"{path.name}: home {home!r} is not a folder below work")
    work = Path(_text(table, "work", path.name))
    recipe = Recipe(
        name=_text(table, "name", path.name),
        work=work,
        steps=tuple(steps),
        home=None if home is None else work / home,
        closing=str(table.get("closing", "")),
    )
    _check_references(REFERENCE.findall(recipe.closing), steps, where=f"{path.name}, closing")
    return recipe


def _read_step(raw: Any, before: list[RecipeStep], *, where: str) -> RecipeStep:
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: a step is a table")
    _check_keys(raw, _STEP_KEYS, where=where)
    name, uses = _text(raw, "name", where), _text(raw, "uses", where)
    if not _NAME.match(name) or name in BUILT_IN or any(step.name == name for step in before):
        raise RecipeError(f"{where}: the name {name!r} is taken or not lowercase-with-dashes")
    if uses not in KINDS:
        raise RecipeError(f"{where}: unknown kind {uses!r}", hint=f"Kinds: {', '.join(KINDS)}.")
    table = raw.get("options", {})
    if not isinstance(table, dict):
        raise RecipeError(f"{where} ({name}): options are a table, [step.options]")
    step = RecipeStep(name, KINDS[uses], table)
    _check_references([n for value in table.values() for n in _names(value)], before, where=where)
    try:
        load_options(step.kind, table)
    except UsageError as error:
        raise RecipeError(f"{where} ({name}): {error}", hint=error.hint) from error
    return step


def _check_references(names: list[str], before: list[RecipeStep], *, where: str) -> None:
    known = {step.name for step in before} | BUILT_IN
    for name in names:
        if name not in known:
            raise RecipeError(f"{where}: {{{name}}} names no earlier step")


def _check_keys(table: Mapping[str, Any], known: set[str], *, where: str) -> None:
    for key in table:
        if key not in known:
            raise RecipeError(
                f"{where}: unknown key {key!r}", hint=f"Known keys: {', '.join(sorted(known))}."
            )


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{where}: key {key!r} is missing or not a text")
    return value


def _list(table: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = table.get(key)
    if not isinstance(value, list) or not value:
        raise RecipeError(f"{path.name}: a recipe needs at least one [[step]]")
    return value

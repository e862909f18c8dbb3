"""Check a card before it is published: front matter, companion files, and figures that drifted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from model_cards.body import value_text
from model_cards.errors import CardLintError
from model_cards.facts import CardFacts, read_facts
from model_cards.front_matter import front_matter
from model_cards.licences import LICENCES
from model_store.files import sha256_file

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
# home folders and the like: a path of somebody's machine has no business on a hub
_MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|mnt|work|var|opt)/\S+")


def lint_card(snapshot: Path) -> list[str]:
    """Return what is wrong with a snapshot's card, a sentence each; empty when it is fit.

    Raises:
        NotASnapshotError: the folder has no manifest.
    """
    facts = read_facts(snapshot)
    missing = [
        f"{name} is missing"
        for name in ("README.md", "LICENSE", "NOTICE", "configuration.json")
        if not (snapshot / name).is_file()
    ]
    if missing:
        return missing
    text = (snapshot / "README.md").read_text(encoding="utf-8")
    problems = _front_matter_problems(text, facts)
    problems += _licence_problems(snapshot, facts)
    problems += _figure_problems(text, facts)
    problems += [f"README.md names a machine's path: {p}" for p in _MACHINE_PATH.findall(text)]
    return problems


def _front_matter_problems(text: str, facts: CardFacts) -> list[str]:
    found = _FRONT_MATTER.match(text)
    if found is None:
        return ["README.md has no front matter"]
    try:
        values = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"README.md: the front matter is not YAML: {error}"]
    if not isinstance(values, dict):
        return ["README.md: the front matter is not a table"]
    licence = next((x for x in LICENCES.values() if x.front_matter.items() <= values.items()), None)
    if licence is None:
        return ["README.md: the front matter names no licence that we know"]
    return _differences(values, front_matter(facts, licence))


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    # an owner may add keys and tags; what the manifest knows must not be contradicted
    return [
        f"README.md: front matter has {key} {found.get(key)!r}, the manifest says {value!r}"
        for key, value in expected.items()
        if key != "tags" and found.get(key) != value
    ]


def _licence_problems(snapshot: Path, facts: CardFacts) -> list[str]:
    known = {digest for licence in LICENCES.values() for digest in licence.sha256}
    problems = []
    if sha256_file(snapshot / "LICENSE") not in known:
        problems.append("LICENSE is not the unaltered text of a licence that we know")
    if facts.lineage and not (snapshot / "CHANGES.md").is_file():
        problems.append("CHANGES.md is missing, and the files were changed")
    return problems


def _figure_problems(text: str, facts: CardFacts) -> list[str]:
    cells = _table_cells(text)
    problems = [
        f"README.md does not give {m.name} as {record.name} recorded it"
        for record in facts.parity
        for m in record.measurements
        if value_text(m) not in cells.get(m.name, [])
    ]
    if facts.content_digest not in text:
        problems.append("README.md does not name this snapshot's content digest")
    return problems


def _table_cells(text: str) -> dict[str, list[str]]:
    """First cell of every table row -> the texts of the other cells in its rows."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    rows: dict[str, list[str]] = {}
    row: list[str] = []
    for token in parser.parse(_FRONT_MATTER.sub("", text)):
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append("".join(part.content for part in token.children or ()))
        elif token.type == "tr_close" and row:
            rows.setdefault(row[0], []).extend(row[1:])
    return rows


def check_card(snapshot: Path) -> None:
    """Raise on the first problem of `lint_card`.

    Raises:
        CardLintError: the card is not fit to be published.
    """
    problems = lint_card(snapshot)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CardLintError(problems[0] + more)

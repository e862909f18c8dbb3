"""Write a snapshot's card and its companion files, in place and outside the content digest."""

from __future__ import annotations

import json
from pathlib import Path

from model_cards.body import render_body
from model_cards.facts import CardFacts, read_facts
from model_cards.front_matter import configuration, front_matter, render
from model_cards.licences import find_licence, write_licence_files
from model_cards.options import CardOptions
from model_store.files import write_text
from model_store.manifest import refresh_manifest


def write_card(options: CardOptions) -> Path:
    """Write README.md, configuration.json, LICENSE and NOTICE; returns the card's path.

    Raises:
        NotASnapshotError: the folder has no manifest.
        LicenceError: the licence cannot be told, or its text is missing.
    """
    snapshot = options.snapshot
    facts = read_facts(snapshot)
    licence = find_licence(snapshot, asked=options.licence)
    derived_from = facts.base.repo_id if facts.base else None
    write_licence_files(snapshot, licence, derived_from=derived_from)
    title = options.title or _title(facts)
    card = render(front_matter(facts, licence)) + "\n" + render_body(facts, licence, title=title)
    write_text(snapshot / "README.md", card)
    settings = json.dumps(configuration(facts), indent=2, sort_keys=True) + "\n"
    write_text(snapshot / "configuration.json", settings)
    refresh_manifest(snapshot)
    return snapshot / "README.md"


def _title(facts: CardFacts) -> str:
    name = facts.base.repo_id.split("/")[-1] if facts.base else "Checkpoint"
    if facts.quantization is not None:
        return f"{name}-Int{facts.quantization['bits']}"
    return f"{name}, native layout" if facts.lineage else name

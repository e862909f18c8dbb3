"""One YAML front matter that both hubs read: each ignores the other's keys."""

from __future__ import annotations

from typing import Any

import yaml

from model_cards.facts import CardFacts
from model_cards.licences import Licence


def front_matter(facts: CardFacts, licence: Licence) -> dict[str, Any]:
    """Build the metadata block: Hugging Face's keys first, then ModelScope's own."""
    values: dict[str, Any] = {"language": ["zh", "en"], **licence.front_matter}
    values |= {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    tags = ["qwen-vl", "modelferry"]
    if facts.quantization is not None:
        tags += ["gptq", f"{facts.quantization['bits']}-bit"]
    values["tags"] = tags
    if facts.base is not None:
        values["base_model"] = facts.base.repo_id
    if facts.base is not None and facts.relation is not None:
        values["base_model_relation"] = facts.relation
    # ModelScope's names for the same things
    values |= {"tasks": ["visual-question-answering"], "frameworks": ["pytorch"]}
    return values


def render(values: dict[str, Any]) -> str:
    """Render the block with its two fences; keys keep their order."""
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"---\n{body}---\n"


def configuration(facts: CardFacts) -> dict[str, Any]:
    """ModelScope's configuration.json: its tools refuse a repository without one."""
    del facts  # the same for every member of the family
    return {"framework": "pytorch", "task": "visual-question-answering", "allow_remote": False}

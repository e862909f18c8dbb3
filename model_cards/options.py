"""Options of the card commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_cards.licences import LICENCES
from model_store.options import option


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What to write a card for."""

    snapshot: Path = option("snapshot folder that gets the card", flag="", recorded=False)
    title: str | None = option("title of the card (default: from the lineage)", default=None)
    licence: str | None = option(
        "licence of the weights (default: recognised by the LICENSE file's digest)",
        default=None,
        choices=tuple(LICENCES),
    )

"""What stops a model card.

CardError
├── LicenceError      the licence is unknown, missing or altered
└── CardLintError     a card that says something its records do not
"""

from __future__ import annotations

from model_store.errors import ToolkitError


class CardError(ToolkitError):
    """A card cannot be written from what the snapshot knows."""


class LicenceError(CardError):
    """The licence is unknown, missing or altered."""

    hint = "Name it with --licence, and put the licensor's LICENSE file into the source snapshot."


class CardLintError(CardError):
    """A card or one of its companion files is not fit to be published."""

    hint = "Run `python -m model_cards.generate SNAPSHOT` again."

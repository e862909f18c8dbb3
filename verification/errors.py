"""What can go wrong in verification.

ToolkitError
├── UsageError
│   └── ProfileError             a thresholds file that cannot be used as it is (exit 2)
└── VerificationError            the comparison cannot be made (exit 4)
    ├── NotComparableError           other architecture, or vocabularies that do not match
    ├── NotFiniteError               a model that answers with NaN or infinity
    ├── WitnessError                 the independent forward does not cover this input
    └── ReportTargetError            the report's place holds something that is not ours
"""

from __future__ import annotations

from model_store.errors import ToolkitError, UsageError


class ProfileError(UsageError):
    """A profile with an unknown key, a missing section or a limit that makes no sense."""

    hint = "Start from verification/profiles/default.toml; every measurement has its section."

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class VerificationError(ToolkitError):
    """The comparison cannot be made."""


class NotComparableError(VerificationError):
    """Two snapshots that no measurement could tell apart in a meaningful way."""

    hint = "Name a reference and a candidate of the same model; see `config.json` of both."


class NotFiniteError(VerificationError):
    """A model whose logits are NaN or infinite: there is no distribution to compare."""

    hint = "Its weights are damaged, or overflowed in a cast; run `ferry verify` on the folder."


class WitnessError(VerificationError):
    """The independent forward does not cover this checkpoint or input."""


class ReportTargetError(VerificationError):
    """The place of the report is taken by something that is not a report of ours."""

    hint = "Choose another folder with --report."

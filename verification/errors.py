"""What can go wrong in verification.

ToolkitError
├── UsageError
│   ├── ProfileError             a thresholds file that cannot be used as it is (exit 2)
│   ├── NoSuchProbeError         --only names a probe that is not run (exit 2)
│   └── JudgePromptError         a judge's prompt that cannot be filled in (exit 2)
└── VerificationError            the comparison cannot be made (exit 4)
    ├── NotComparableError           other architecture, or vocabularies that do not match
    ├── NotFiniteError               a model that answers with NaN or infinity
    ├── WorldError                   processes that do not find together
    ├── BaselineError                a blessed report that cannot be used
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


class NoSuchProbeError(UsageError):
    """`--only` names a probe that this seed and number of samples do not have."""

    hint = "Keys are probe-000, probe-001, …; the report lists them."

    def __init__(self, key: str, samples: int) -> None:
        super().__init__(f"there is no {key!r} among {samples} probes")
        self.key = key


class JudgePromptError(UsageError):
    """A template for the judge that cannot be read or filled in."""

    hint = "Use $description, $question, $first and $second; see verification/judge_prompt.py."


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


class WorldError(VerificationError):
    """The processes of one comparison do not find together."""

    hint = "Start them with torchrun: torchrun --nproc-per-node 2 -m verification.compare …"


class BaselineError(VerificationError):
    """A blessed report that cannot be used, or is about something else."""

    hint = "Bless a report of the same claim: python -m verification.bless REPORT."

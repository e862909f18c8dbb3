"""The options of `verification.compare`: flags, recipe table and record come from this class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.errors import UsageError
from model_store.options import option

CLAIMS = ("converted", "quantized")


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What is claimed about which two snapshots, and how hard to look."""

    reference: str = option("snapshot folder or repo name that is the yardstick", flag="")
    candidate: str = option("snapshot folder or repo name that the claim is about", flag="")
    claim: str = option("what is claimed of the candidate", choices=CLAIMS)
    profile: str = option(
        "thresholds: a TOML file, or one that is built in, default or demo",
        default="default",
        metavar="FILE",
    )
    report: Path | None = option(
        "folder for the report (default: ./parity-report-CLAIM)",
        default=None,
        metavar="DIR",
        recorded=False,
    )
    samples: int | None = option(
        "number of probe dialogues (default: the profile's)", default=None, metavar="N"
    )
    seed: int = option("seed of probes and bootstrap", default=0, metavar="S")

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples is {self.samples}", hint="Ask for one sample or more.")

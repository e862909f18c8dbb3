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
    batch_size: int = option("probes that go through a model together", default=16, metavar="N")
    dtype: str = option(
        "number type that both models run in",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
    )
    device: str = option(
        "where both models run: cpu, cuda (under torchrun one device each), cuda:1, …",
        default="cpu",
    )
    work: Path | None = option(
        "folder for what is done so far, kept: a reference is then asked once for many candidates "
        "(default: beside the report, removed when that is written)",
        default=None,
        metavar="DIR",
        recorded=False,
    )
    baseline: Path | None = option(
        "blessed report to show regressions against, see verification.bless",
        default=None,
        metavar="FILE",
        recorded=False,
    )
    only: str | None = option(
        "run one probe by its key, with all else as before, to look into it; gives no verdict",
        default=None,
        metavar="KEY",
        recorded=False,
    )

    def __post_init__(self) -> None:
        for name, value in (("--samples", self.samples), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}", hint="Ask for one or more.")
        if self.seed < 0:
            raise UsageError("--seed must not be negative")

"""GptqConfig: the one source of flags, recipe table, provenance and quantize_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_store.errors import UsageError
from model_store.options import option

DEFAULT_MODEL = "qwen/Qwen-VL-Chat"
BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """How to quantize; the defaults are the best measured ones that every kernel reads."""

    model: str = option(
        "snapshot folder, or a repository's name", default=DEFAULT_MODEL, flag="", recorded=False
    )
    method: str = option(
        "gptq, or rtn: rounding to nearest, the baseline", default="gptq", choices=("gptq", "rtn")
    )
    bits: int = option("bits per weight", default=4, choices=(2, 4, 8))
    group_size: int = option("input columns that share a scale; -1 for all", default=128)
    act_order: str = option(
        "static: columns by falling diagonal, scales fixed beforehand; none: from left to right",
        default="static",
        choices=("none", "static"),
    )
    damping: float = option("fraction of the Hessian's mean diagonal added to it", default=0.01)
    scale_search: str = option(
        "scales from the largest weight, or by least squares, plain or Hessian-weighted",
        default="hessian",
        choices=("minmax", "mse", "hessian"),
    )
    calibration: str = option(
        "builtin (drawn scenes) or a file of conversations, one JSON object a line",
        default=BUILTIN,
        metavar="builtin|FILE.jsonl",
        recorded=False,  # the samples' digest is recorded instead
    )
    images: Path | None = option(
        "folder that the calibration file's image names are relative to",
        default=None,
        metavar="DIR",
        recorded=False,
    )
    samples: int = option("calibration samples", default=32)
    seed: int = option("seed of the drawn scenes, and of the pick from a longer file", default=0)
    max_tokens: int = option("longest calibration sample that is accepted", default=2048)
    dtype: str = option(
        "number type of the calibration runs; auto is the checkpoint's own",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = option("where to compute: cpu, cuda, cuda:1, …", default="cpu")
    into: str | None = option(
        "folder, or local:owner/name, to write to (default: local:<owner>/<name>-GPTQ-Int4)",
        default=None,
        recorded=False,
    )
    verify: bool = option(
        "hash the source's files against its manifest first", default=True, recorded=False
    )
    replace: bool = option(
        "replace an older snapshot of ours at the target", default=False, recorded=False
    )

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):  # what qwen_vl reads; three would cross word borders
            raise UsageError(f"{self.bits} bits: choose 2, 4 or 8")
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"--group-size {self.group_size}: a positive number, or -1 for all")
        if not 0 <= self.damping <= 1:
            raise UsageError(f"--damping {self.damping:g}: between 0 and 1")
        if self.samples < 1 or self.max_tokens < 1:
            raise UsageError("--samples and --max-tokens must be at least 1")
        if self.seed < 0:
            raise UsageError("--seed must not be negative")
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, not one of {known}")

    def group_of(self, columns: int) -> int:
        """Columns per group of a layer with `columns` inputs."""
        return columns if self.group_size == -1 else self.group_size


_KNOWN = {
    "method": ("gptq", "rtn"),
    "act_order": ("none", "static"),
    "scale_search": ("minmax", "mse", "hessian"),
}

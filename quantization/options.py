"""GptqConfig: the one source of flags, recipe table, provenance and quantize_config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.errors import UsageError
from model_store.options import option
from quantization.module_rules import parse_rules

DEFAULT_MODEL = "qwen/Qwen-VL-Chat"
BUILTIN = "builtin"

# what an option is when it is not given; docs/quantization.md shows what each preset costs
PRESETS: dict[str, dict[str, Any]] = {
    # half of the samples: running them is most of the work
    "fast": {"act_order": "static", "scale_search": "conditional", "sweeps": 0, "share": 0.5},
    "balanced": {"act_order": "static", "scale_search": "conditional", "sweeps": 0, "share": 1.0},
    "best": {"act_order": "static", "scale_search": "conditional", "sweeps": 4, "share": 1.0},
}


@dataclass(frozen=True, slots=True)
class GptqConfig:
    """How to quantize; the defaults are the best measured ones that every kernel reads.

    An option that a preset rules and that is not given takes the preset's value when the object is
    made, so that provenance names what was really done.
    """

    model: str = option(
        "snapshot folder, or a repository's name", default=DEFAULT_MODEL, flag="", recorded=False
    )
    preset: str = option(
        "fast, balanced or best: what the options without a value of their own become",
        default="balanced",
        choices=tuple(PRESETS),
    )
    method: str = option(
        "gptq, or rtn: rounding to nearest, the baseline", default="gptq", choices=("gptq", "rtn")
    )
    bits: int = option("bits per weight", default=4, choices=(2, 3, 4, 8))
    group_size: int = option(
        "input columns that share a scale, such as 16, 32, 64 or 128; -1 for all", default=128
    )
    act_order: str = option(
        "static: columns by falling diagonal, scales fixed beforehand; dynamic: groups in that "
        "order too, which costs at run time; none: from left to right (default: static)",
        default="",
        choices=("none", "static", "dynamic"),
    )
    damping: float = option("fraction of the Hessian's mean diagonal added to it", default=0.01)
    scale_search: str = option(
        "scales from the largest weight; or by least squares: plain, weighted by the Hessian's "
        "diagonal, or by what later columns cannot make up for (default: conditional)",
        default="",
        choices=("minmax", "mse", "hessian", "conditional"),
    )
    sweeps: int | None = option(
        "passes that reconsider every integer and every scale after solving", default=None
    )
    share: float | None = option(
        "part of the calibration samples that is run, evenly picked", default=None
    )
    asymmetric: bool = option(
        "calibrate towards the outputs of the unquantized model (GPTAQ): about twice the time",
        default=False,
    )
    signed_scales: bool = option(
        "let scales be negative where that puts the grid's longer side to use; not proved on GPU "
        "kernels",
        default=False,
    )
    include: tuple[str, ...] = option(
        "linears beside the decoder layers' to quantize as well: lm_head; repeatable",
        default=(),
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = option(
        "linears to leave as they are, by name or pattern such as '*.down_proj'; repeatable",
        default=(),
        metavar="PATTERN",
    )
    modules: tuple[str, ...] = option(
        "bits and group size of some linears: '*.down_proj:bits=8,group_size=64'; repeatable, the "
        "first that fits counts",
        default=(),
        metavar="PATTERN:KEY=N,…",
    )
    calibration: str = option(
        "builtin (drawn scenes; seeded tokens for a text model), a file of conversations, one JSON "
        'object a line, or for a text model of texts: {"text": …}',
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
    format: str = option(
        "gptq: version 1, which every reader knows; gptq_v2", default="gptq",
        choices=("gptq", "gptq_v2"),
    )  # fmt: skip
    layout: str = option(
        "native, or original: the names and the zero biases that the loaders of 2023 expect",
        default="native",
        choices=("native", "original"),
    )
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
        if self.preset not in PRESETS:
            raise UsageError(f"preset is {self.preset!r}, not one of {tuple(PRESETS)}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) in ("", None):
                object.__setattr__(self, name, value)
        _check_numbers(self)
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}, not one of {known}")
        parse_rules(self.modules)

    def group_of(self, columns: int) -> int:
        """Columns per group of a layer with `columns` inputs."""
        return columns if self.group_size == -1 else self.group_size

    def for_module(self, name: str) -> GptqConfig:
        """The options of one linear: these, with what the first fitting rule says."""
        for rule in parse_rules(self.modules):
            if rule.fits(name):
                return dataclasses.replace(
                    self,
                    bits=self.bits if rule.bits is None else rule.bits,
                    group_size=self.group_size if rule.group_size is None else rule.group_size,
                )
        return self


_KNOWN = {
    "method": ("gptq", "rtn"),
    "act_order": ("none", "static", "dynamic"),
    "scale_search": ("minmax", "mse", "hessian", "conditional"),
    "format": ("gptq", "gptq_v2"),
    "layout": ("native", "original"),
}


def _check_numbers(config: GptqConfig) -> None:
    if config.bits not in (2, 3, 4, 8):
        raise UsageError(f"{config.bits} bits: choose 2, 3, 4 or 8")
    if config.group_size != -1 and config.group_size < 1:
        raise UsageError(f"--group-size {config.group_size}: a positive number, or -1 for all")
    if not 0 <= config.damping <= 1:
        raise UsageError(f"--damping {config.damping:g}: between 0 and 1")
    if config.samples < 1 or config.max_tokens < 1:
        raise UsageError("--samples and --max-tokens must be at least 1")
    if config.seed < 0:
        raise UsageError("--seed must not be negative")
    if config.share is None or not 0 < config.share <= 1:
        raise UsageError(f"--share {config.share}: above 0, at most 1")
    if config.sweeps is None or not 0 <= config.sweeps <= 100:
        raise UsageError(f"--sweeps {config.sweeps}: from 0 to 100")

"""What a run came to, as a record: every linear's error against plain rounding, and the proofs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from model_store.options import provenance
from model_store.records import Measurement, RecordSet, hardware, versions
from quantization.options import GptqConfig
from quantization.sequential import LayerError

RECORD = "quantization"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured."""

    errors: Sequence[LayerError]
    difference: float  # of the written model's logits from memory's
    limit: float
    tokens: int  # behind it
    kernels: Mapping[str, float]  # kernel -> largest relative error over the linears


def record(config: GptqConfig, parent: str, content: str, outcome: Outcome) -> RecordSet:
    """Make the record.

    Args:
        config: what was asked for.
        parent: content digest of the source.
        content: content digest of the result.
        outcome: what was measured.
    """
    return RecordSet(
        name=RECORD,
        claim="Each linear's output error on the calibration set, against plain rounding.",
        reference=parent,
        candidate=content,
        command=_command(config),
        seed=config.seed,
        hardware=hardware(),
        versions=versions(("modelferry", "torch", "transformers", "numpy", "pillow", "gptqmodel")),
        profile={"threads": torch.get_num_threads(), "system": platform.system()},
        measurements=[
            _reloaded(outcome),
            *(_kernel(*one, len(outcome.errors)) for one in outcome.kernels.items()),
            *(_measurement(one, config) for one in outcome.errors),
        ],
    )


def _reloaded(outcome: Outcome) -> Measurement:
    return Measurement(
        name="reloaded model: relative difference of logits from memory",
        value=_short(outcome.difference),
        unit="relative norm",
        n=outcome.tokens,
        verdict="pass",
        threshold=f"<= {outcome.limit:g}",
    )


def _kernel(name: str, error: float, linears: int) -> Measurement:
    return Measurement(
        name=f"kernel {name}: largest relative error of a linear's output",
        value=_short(error),
        unit="relative norm",
        n=linears,
        verdict="pass",
    )


def _measurement(one: LayerError, config: GptqConfig) -> Measurement:
    worse = config.method == "gptq" and one.error > one.rounding_error
    notes = ["the threshold is rounding to nearest on the same inputs"]
    if config.method == "gptq":
        notes.append(f"damping {one.damping:g}")
    if one.dead:
        notes.append(f"{one.dead} of {one.columns} inputs never active")
    thin = config.method == "gptq" and one.rows < one.columns
    if thin:
        notes.append(f"rank at most {one.rows} of {one.columns}: more samples would tell more")
    return Measurement(
        name=f"{one.name}: relative output error",
        value=_short(one.error),
        unit="relative mean square",
        n=one.rows,
        verdict="warn" if worse or thin else "pass",
        threshold=f"<= {_short(one.rounding_error):g}",
        note="; ".join(notes),
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def notice(config: GptqConfig) -> str:
    """The notice of change, in one sentence."""
    how = "GPTQ" if config.method == "gptq" else "rounding to nearest"
    which = "the decoder's linear layers" + (" and lm_head" if config.include else "")
    apart = " (some otherwise)" if config.modules or config.exclude else ""
    return (
        f"Changed by modelferry: {which} were quantized to {config.bits} bits{apart} "
        f"by {how}, group size {config.group_size}; every other tensor is unchanged."
    )


def _command(config: GptqConfig) -> list[str]:
    told: list[str] = ["python", "-m", "quantization.gptq"]
    for key, value in provenance(config).items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            told += [flag] if value else []
        elif isinstance(value, list | tuple):
            told += [part for one in value for part in (flag, str(one))]
        else:
            told += [flag, str(value)]
    return told

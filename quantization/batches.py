"""Calibration samples in batches, as they lie between two decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantization.blocks import Call, reach_layers

_TOKENS = 4096  # of one batch: its temporaries are all that exists several times over


@dataclass(frozen=True, slots=True)
class CalibrationInput:
    """One sample as the model takes it: `input_ids` (n,) int64, and its images, if any."""

    input_ids: Tensor
    pixel_values: Tensor | None = None


@dataclass
class Batch:
    """Samples of about one length, between two layers."""

    hidden: Tensor  # (samples, longest, width)
    kept: Tensor | None  # (samples, longest) bool, False at padding; None: nothing is padded
    calls: list[Call]  # what the decoder gives each of its layers
    original: Tensor | None = None  # the hidden states of the unquantized model, where wanted

    def rows(self, inputs: Tensor) -> Tensor:
        """The rows of a linear's input that are no padding: (rows, width)."""
        return inputs.flatten(0, -2) if self.kept is None else inputs[self.kept]


def make_batches(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    samples: Sequence[CalibrationInput],
    *,
    twin: bool = False,
) -> list[Batch]:
    """Run every sample up to the first layer.

    Args:
        model: everything in front of its layers must be in memory.
        layers: the decoder's.
        samples: in the order in which they are batched.
        twin: keep the hidden states a second time, to follow the unquantized model with.

    Raises:
        UnsupportedModelError: see `reach_layers`.
    """
    batches = []
    for group in grouped(samples):
        made = _batch(model, layers, group)
        made.original = made.hidden if twin else None
        batches.append(made)
    return batches


def grouped(samples: Sequence[CalibrationInput]) -> list[list[CalibrationInput]]:
    """Neighbours, as many as fit into a batch."""
    groups: list[list[CalibrationInput]] = []
    longest = 0
    for sample in samples:
        longest = max(longest, len(sample.input_ids))
        if not groups or (len(groups[-1]) + 1) * longest > _TOKENS:
            groups.append([])
            longest = len(sample.input_ids)
        groups[-1].append(sample)
    return groups


def _batch(
    model: nn.Module, layers: Mapping[str, nn.Module], samples: Sequence[CalibrationInput]
) -> Batch:
    longest = max(len(sample.input_ids) for sample in samples)
    parts: list[Tensor] = []
    calls: list[Call] = []
    kept = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):
        kept[row, : len(sample.input_ids)] = True
        hidden, told = reach_layers(model, layers, given(model, sample, longest))
        parts.append(hidden)
        calls = calls or told
    # every sample was padded to the same length, so mask and positions are those of any of them
    whole = torch.cat(parts)
    return Batch(whole, None if bool(kept.all()) else kept.to(whole.device), calls)


def given(model: nn.Module, sample: CalibrationInput, longest: int | None = None) -> dict[str, Any]:
    """The keyword arguments to run a model with one sample, padded on the right."""
    device = next(p.device for p in model.parameters() if p.device.type != "meta")
    count = len(sample.input_ids)
    # the pad is the sample's own first id: any ordinary token does, it is never looked at
    ids = sample.input_ids.new_full((1, longest or count), int(sample.input_ids[0]))
    ids[0, :count] = sample.input_ids
    found: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if sample.pixel_values is not None:
        found["pixel_values"] = sample.pixel_values.to(device)
    return found

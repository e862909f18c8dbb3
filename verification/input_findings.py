"""Whether both sides were given the same: token ids of many strings and prompts, and pixels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from verification.evidence import Finding
from verification.folders import Subject
from verification.passes import Heard, Plan, Reply
from verification.probes import Probe

_Replies = Mapping[int, Reply]


def input_findings(
    reference: Subject,
    candidate: Subject,
    plan: Plan,
    replies: tuple[_Replies, _Replies],
    heard: tuple[Heard, Heard],
) -> dict[str, Finding]:
    """Compare the ids of the tokenizer strings and of every prompt, and the image tensors."""
    strings = list(zip(heard[0].strings, heard[1].strings, strict=True))
    prompts = [(replies[0][i].prompt, replies[1][i].prompt) for i in range(len(plan.probes))]
    wrong = sum(list(a) != list(b) for a, b in strings)
    wrong_prompts = sum(a != b for a, b in prompts)
    note = f"{len(strings)} strings, {len(prompts)} prompts"
    if wrong or wrong_prompts:
        note = f"{wrong} of {len(strings)} strings, {wrong_prompts} of {len(prompts)} prompts"
    return {
        "token_ids_differing": Finding(
            wrong + wrong_prompts, len(strings) + len(prompts), note=note
        ),
        "pixels_max_delta": _pixels(reference, candidate, plan, replies),
    }


def _pixels(
    reference: Subject, candidate: Subject, plan: Plan, replies: tuple[_Replies, _Replies]
) -> Finding:
    shown = [i for i, probe in enumerate(plan.probes) if probe.images]
    if not shown:
        return Finding(None, note="no probe shows an image")
    images = sum(len(plan.probes[i].images) for i in shown)
    other = [i for i in shown if replies[0][i].pixels != replies[1][i].pixels]
    largest = 0.0
    # only digests were kept, so what differs is made once more
    for index in other:
        probe = plan.probes[index]
        a, b = (image_values(side, probe) for side in (reference, candidate))
        largest = max(largest, _distance(a, b))
    return Finding(largest, images, note=f"{len(other)} probes differ" if other else "")


def image_values(subject: Subject, probe: Probe) -> Tensor:
    """Preprocess a probe's images as a snapshot says: (images, 3, side, side) float32."""
    from qwen_vl.loading import load_processor

    processor = load_processor(subject.folder).image_processor
    made = processor.preprocess(list(probe.images))["pixel_values"]
    return torch.as_tensor(np.asarray(made))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")

"""Hold what was heard from the models against the independent forward of 2023."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from verification.evidence import Finding
from verification.folders import Subject
from verification.input_findings import image_values
from verification.passes import Heard, Plan, Reply
from verification.tracing import FEATURES, relative_error
from verification.witness import WitnessInput, witness_features, witness_logits

_ABSENT = Finding(None, note="neither side is in the 2023 layout", applies=False)
_BLIND = Finding(None, note="no traced probe shows an image", applies=False)


def witness_findings(
    subjects: tuple[Subject, Subject],
    plan: Plan,
    replies: tuple[Mapping[int, Reply], Mapping[int, Reply]],
    heard: tuple[Heard, Heard],
    claim: str,
) -> dict[str, Finding]:
    """Run the independent forward on the side in the 2023 layout; hold the other against it.

    Int4 weights and full-precision ones cannot agree, so a quantized claim holds each side against
    itself: the yardstick is then known to be read rightly. The image rows alone are held against
    each other too: they are the same on both sides of either claim, and an error in the vision
    tower that the decoder would swallow is plain in them.

    Raises:
        WitnessError: weights or prompts that the independent forward does not cover.
    """
    place = next((i for i, subject in enumerate(subjects) if subject.original), None)
    if place is None:
        return {"witness_max_delta": _ABSENT, "witness_image_error": _ABSENT}
    subject = subjects[place]
    other = heard[place if claim == "quantized" else 1 - place]
    pixels = {
        i: image_values(subject, plan.probes[i]) for i in plan.traced if plan.probes[i].images
    }
    inputs = [
        WitnessInput(torch.tensor(replies[place][i].prompt), pixels.get(i), last=len(trace.logits))
        for i, trace in zip(plan.traced, heard[place].traces, strict=True)
    ]
    found = witness_logits(subject.folder, inputs)
    deltas = {
        i: float((logits - trace.logits).abs().max())
        for i, logits, trace in zip(plan.traced, found, other.traces, strict=True)
    }
    worst = max(deltas, key=lambda i: deltas[i])
    probe, side = plan.probes[worst], ("reference", "candidate")[place]
    note = f"on the weights of the {side}; worst: {probe.key} ({probe.kind})"
    total = sum(len(logits) for logits in found)
    logits = Finding(deltas[worst], total, note=note)
    if not pixels:
        return {"witness_max_delta": logits, "witness_image_error": _BLIND}
    seen = witness_features(subject.folder, list(pixels.values()))
    rows = {
        i: trace.given[FEATURES]
        for i, trace in zip(plan.traced, other.traces, strict=True)
        if i in pixels
    }
    errors = [
        relative_error(rows[i], np.asarray(features.numpy(), np.float32))
        for i, features in zip(pixels, seen, strict=True)
    ]
    images = Finding(max(errors), sum(len(features) for features in seen), note=f"of the {side}")
    return {"witness_max_delta": logits, "witness_image_error": images}

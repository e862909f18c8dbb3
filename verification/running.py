"""Run a comparison: tensors, tokenizers, probes on both sides, the witness; judge nothing.

The two models are never in memory together: the reference goes first, and its logits wait on disk
(answer positions x vocabulary, float32) for the candidate's.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_store.progress import Progress
from verification.answers import Prompt, Speaker
from verification.divergence import divergence
from verification.errors import NotComparableError
from verification.evidence import Answer, Finding, ProbeResult, WeightError
from verification.findings import converted_findings, quantized_findings
from verification.folders import Subject
from verification.measures import BY_CLAIM
from verification.probes import TRICKY_STRINGS, Box, Probe, make_probes
from verification.profile import Profile
from verification.tensors import compare_converted, compare_quantized
from verification.witness import WitnessInput, witness_logits

_WORTH_THREADS = 1024  # hidden size
_TAIL = 32  # prompt positions on which the witness is heard


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was found out about a pair."""

    findings: Mapping[str, Finding]
    results: tuple[ProbeResult, ...]
    weights: tuple[WeightError, ...]
    seconds: Mapping[str, float]  # of the stage that a measurement comes from


class _Clock:
    """Seconds per stage, told to every measurement that comes from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, *names: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        spent = time.monotonic() - started
        for name in names:
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(slots=True)
class _Pass:
    """What one side answered, in the order of the probes."""

    answers: list[Answer] = field(default_factory=list)
    boxes: list[Box | None] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    tails: dict[str, Tensor] = field(default_factory=dict)  # of the witness's probes
    tokens: list[list[int]] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)


def gather(
    reference: Subject,
    candidate: Subject,
    profile: Profile,
    *,
    samples: int,
    seed: int,
    progress: Progress,
) -> Evidence:
    """Measure everything that the profile's claim asks for.

    Raises:
        NotComparableError: the two vocabularies do not match.
        ToolkitError: a snapshot that cannot be read or loaded.
    """
    with _threads_for(reference):
        return _gather(reference, candidate, profile, samples, seed, progress)


@contextmanager
def _threads_for(subject: Subject) -> Iterator[None]:
    """Run a small model on one thread: many threads cost it more than they bring."""
    before = torch.get_num_threads()
    if subject.architecture.hidden_size < _WORTH_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gather(
    reference: Subject,
    candidate: Subject,
    profile: Profile,
    samples: int,
    seed: int,
    progress: Progress,
) -> Evidence:
    clock = _Clock()
    probes = make_probes(seed, samples)
    findings, weights = _compare_tensors(reference, candidate, profile.claim, clock, progress)
    missing = findings["tensors_unpaired"]
    if missing.value:
        reason = f"not run: tensors are missing or extra ({missing.note})"
        rest = [m.name for m in BY_CLAIM[profile.claim] if m.name not in findings]
        findings |= {name: Finding(None, note=reason) for name in rest}
        return Evidence(findings, (), weights, clock.seconds)
    sampled = [m.name for m in BY_CLAIM[profile.claim] if m.from_probes or "token" in m.name]
    heard = _witness_probes(probes, profile.probes.witness)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch, clock.stage(*sampled):
        store = Path(scratch)
        ours = _reference_pass(reference, probes, heard, profile, store, progress)
        theirs, results = _candidate_pass(candidate, probes, heard, profile, store, ours, progress)
    findings |= _input_findings(ours, theirs)
    make = converted_findings if profile.claim == "converted" else quantized_findings
    findings |= make(results, seed=seed)
    with clock.stage("witness_max_delta"):
        sides = ((reference, ours), (candidate, theirs))
        findings["witness_max_delta"] = _hear_witness(sides, probes, heard, profile.claim)
    return Evidence(findings, tuple(results), weights, clock.seconds)


def _compare_tensors(
    reference: Subject, candidate: Subject, claim: str, clock: _Clock, progress: Progress
) -> tuple[dict[str, Finding], tuple[WeightError, ...]]:
    names = [m.name for m in BY_CLAIM[claim] if "tensors" in m.name or "weight" in m.name]
    with clock.stage(*names):
        if claim == "converted":
            found = compare_converted(reference, candidate, progress)
            return {
                "tensors_differing": found.differing,
                "tensors_unpaired": found.unpaired,
            }, ()
        packed = compare_quantized(reference, candidate, progress)
    same = reference.side.content_digest == candidate.side.content_digest
    return {
        "quantized_linears": packed.linears,
        "same_content": Finding(int(same), 1),
        "tensors_unpaired": packed.unpaired,
        "kept_tensors_differing": packed.kept_differing,
        "weight_error_max": packed.worst_error,
        "weight_scale_deviation_max": packed.worst_scale,
    }, packed.errors


def _witness_probes(probes: Sequence[Probe], each: int) -> dict[str, int]:
    """Pick `each` probes with images and as many without: key -> index."""
    shown = [i for i, probe in enumerate(probes) if probe.images]
    spoken = [i for i, probe in enumerate(probes) if not probe.images]
    return {probes[i].key: i for i in (*shown[:each], *spoken[:each])}


def _reference_pass(
    subject: Subject,
    probes: Sequence[Probe],
    heard: Mapping[str, int],
    profile: Profile,
    store: Path,
    progress: Progress,
) -> _Pass:
    speaker, done = Speaker(subject.folder), _Pass()
    with progress.task("ask the reference", len(probes), unit="probes") as task:
        for probe in probes:
            _ask(speaker, probe, heard, profile.probes.new_tokens, done)
            logits = speaker.score(done.prompts[-1], done.answers[-1].ids)
            np.save(store / f"{probe.key}.npy", logits.numpy())
            task.advance()
    done.tokens = _token_ids(speaker, probes)
    done.special_ids = speaker.tokenizer.special_ids
    _forget(speaker)
    return done


def _candidate_pass(
    subject: Subject,
    probes: Sequence[Probe],
    heard: Mapping[str, int],
    profile: Profile,
    store: Path,
    ours: _Pass,
    progress: Progress,
) -> tuple[_Pass, list[ProbeResult]]:
    speaker, done, results = Speaker(subject.folder), _Pass(), []
    if speaker.tokenizer.special_ids != ours.special_ids:
        raise NotComparableError("the two tokenizers have other ids for special tokens")
    done.tokens = _token_ids(speaker, probes)
    with progress.task("ask the candidate", len(probes), unit="probes") as task:
        for index, probe in enumerate(probes):
            _ask(speaker, probe, heard, profile.probes.new_tokens, done)
            wanted, file = ours.answers[index], store / f"{probe.key}.npy"
            logits = speaker.score(done.prompts[index], wanted.ids)
            expected = torch.from_numpy(np.load(file))
            file.unlink()
            if expected.shape != logits.shape:
                raise NotComparableError(
                    f"the vocabularies have {expected.shape[1]} and {logits.shape[1]} rows"
                )
            results.append(
                ProbeResult(
                    probe=probe,
                    reference=wanted,
                    candidate=done.answers[index],
                    divergence=divergence(expected, logits, wanted.ids),
                    reference_box=ours.boxes[index],
                    candidate_box=done.boxes[index],
                )
            )
            task.advance()
    _forget(speaker)
    return done, results


def _ask(
    speaker: Speaker, probe: Probe, heard: Mapping[str, int], new_tokens: int, done: _Pass
) -> None:
    prompt = speaker.prompt(probe)
    answer, box = speaker.answer(prompt, new_tokens, probe.target)
    done.prompts.append(prompt)
    done.answers.append(answer)
    done.boxes.append(box)
    if probe.key in heard:
        done.tails[probe.key] = speaker.tail(prompt, min(_TAIL, prompt.input_ids.shape[1]))


def _token_ids(speaker: Speaker, probes: Sequence[Probe]) -> list[list[int]]:
    texts = (*TRICKY_STRINGS, *(probe.question for probe in probes))
    return [speaker.tokenizer.encode(text) for text in texts]


def _forget(speaker: Speaker) -> None:
    speaker.model = None  # the other model needs the memory
    gc.collect()


def _input_findings(ours: _Pass, theirs: _Pass) -> dict[str, Finding]:
    pairs = list(zip(ours.tokens, theirs.tokens, strict=True))
    differing = sum(a != b for a, b in pairs)
    seen = [
        (a.pixel_values, b.pixel_values)
        for a, b in zip(ours.prompts, theirs.prompts, strict=True)
        if a.pixel_values is not None and b.pixel_values is not None
    ]
    largest = max((float((a - b).abs().max()) for a, b in seen), default=0.0)
    images = sum(len(a) for a, _ in seen)
    return {
        "token_ids_differing": Finding(differing, len(pairs)),
        "pixels_max_delta": Finding(largest, images)
        if seen
        else Finding(None, note="no probe shows an image"),
    }


def _hear_witness(
    sides: Sequence[tuple[Subject, _Pass]],
    probes: Sequence[Probe],
    heard: Mapping[str, int],
    claim: str,
) -> Finding:
    """Run the independent forward on the side in the 2023 layout; hold the other against it.

    Int4 weights and full-precision ones cannot agree, so a quantized claim holds each side against
    itself: the yardstick is then known to be read rightly.
    """
    place = next((i for i, (subject, _) in enumerate(sides) if subject.original), None)
    if place is None:
        return Finding(None, note="neither side is in the 2023 layout", applies=False)
    subject, own = sides[place]
    other = own if claim == "quantized" else sides[1 - place][1]
    inputs = [
        WitnessInput(
            own.prompts[i].input_ids[0], own.prompts[i].pixel_values, last=len(own.tails[key])
        )
        for key, i in heard.items()
    ]
    found = witness_logits(subject.folder, inputs)
    deltas = {
        key: float((logits - other.tails[key]).abs().max())
        for (key, _), logits in zip(heard.items(), found, strict=True)
    }
    worst = max(deltas, key=lambda key: deltas[key])
    kind = probes[heard[worst]].kind
    note = f"on the weights of the {('reference', 'candidate')[place]}; worst: {worst} ({kind})"
    return Finding(deltas[worst], sum(len(logits) for logits in found), note=note)

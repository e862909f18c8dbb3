"""Ask the reference, then the candidate, batch by batch, through the journal.

The two models are never in memory together. What waits on disk for the candidate are the
reference's last hidden states at its answer's positions, not its logits.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_store.progress import Progress
from verification.answers import Place, Prompt, Said, Speaker
from verification.errors import NotComparableError, NotFiniteError
from verification.evidence import Answer, Curve
from verification.folders import Subject
from verification.heads import StoredHead
from verification.journal import Arrays, Stage
from verification.probes import Box, Probe, tokenizer_strings
from verification.rounding import RoundingPlan, round_in_place
from verification.streaming import Head, Scores, join_scores, score_streaming
from verification.tracing import Trace, trace
from verification.world import World

_FORMAT = "parity-journal/1"
_HEARD = 64  # probes that are also run one by one, for the noise floor


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of both sides, and how."""

    probes: Sequence[Probe]
    batches: Sequence[tuple[int, ...]]
    new_tokens: int
    traced: Sequence[int]  # probes whose modules are looked at one by one
    seed: int
    place: Place
    threads: int

    def key(self, subject: Subject) -> dict[str, Any]:
        """Everything that what a side says depends on."""
        return {
            "format": _FORMAT,
            "subject": subject.side.content_digest,
            "probes": [f"{p.group} {p.target} {p.told}" for p in self.probes],
            "batches": [list(batch) for batch in self.batches],
            "new_tokens": self.new_tokens,
            "traced": list(self.traced),
            "place": [self.place.dtype, self.place.device.partition(":")[0], self.threads],
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """What one side said to one probe, without its hidden states."""

    prompt: tuple[int, ...]
    pixels: str | None  # sha256 of the preprocessed images
    answer: Answer
    box: Box | None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a side was asked once, not per probe."""

    strings: Sequence[Sequence[int]]  # ids of the tokenizer strings
    special_ids: Mapping[str, int]
    traces: Sequence[Trace]  # on the side's own inputs
    fed: Sequence[Trace] = ()  # on the reference's inputs; the candidate's only


def read_replies(stage: Stage, plan: Plan) -> dict[int, Reply]:
    """Gather what every process wrote: probe index -> reply."""
    found: dict[int, Reply] = {}
    for number, batch in enumerate(plan.batches):
        entry = stage.read(_piece(number))
        assert entry is not None  # noqa: S101  the passes have written every batch
        for index, facts in zip(batch, entry.facts, strict=True):
            found[index] = _reply(facts)
    return found


def read_scores(stage: Stage, plan: Plan) -> dict[int, Scores]:
    """Gather the candidate's scores: probe index -> scores."""
    found: dict[int, Scores] = {}
    for number, batch in enumerate(plan.batches):
        entry = stage.read(_piece(number))
        if entry is None:
            continue
        found |= dict(zip(batch, _split(entry.arrays), strict=True))
    return found


def run_reference(
    subject: Subject,
    plan: Plan,
    stage: Stage,
    world: World,
    progress: Progress,
    *,
    yardsticks: Sequence[Yardstick] = (),
) -> Heard | None:
    """Ask the reference this process's batches; the first process also hears the rest."""
    todo = [(n, b) for n, b in world.share(plan.batches) if not stage.has(_piece(n))]
    others = [y for y in yardsticks if not y.finished(plan, world)]
    if not todo and not others and not world.first:
        return None
    speaker = Speaker(subject.folder, plan.place)
    with progress.task("ask the reference", len(plan.probes), unit="probes") as task:
        task.advance(len(plan.probes) - sum(len(batch) for _, batch in todo))
        for number, batch in todo:
            prompts = [speaker.prompt(plan.probes[i]) for i in batch]
            said = _converse(speaker, prompts, plan, batch, None)
            arrays = {f"hidden-{row}": one.hidden.numpy() for row, one in enumerate(said)}
            stage.write(_piece(number), _facts(prompts, said), arrays)
            task.advance(len(batch))
    heard = _hear(speaker, plan, None) if world.first else None
    for yardstick in others:
        yardstick.run(speaker, subject, plan, stage, world, progress)
    _forget(speaker)
    return heard


def run_candidate(
    subject: Subject,
    reference: Subject,
    plan: Plan,
    stages: tuple[Stage, Stage],
    world: World,
    progress: Progress,
    heard: Heard | None,
) -> Heard | None:
    """Ask the candidate, force the reference's answers on it, and score what it makes of them.

    Raises:
        NotComparableError: the two vocabularies do not match.
    """
    ours, theirs = stages
    todo = [(n, b) for n, b in world.share(plan.batches) if not theirs.has(_piece(n))]
    if not todo and not world.first:
        return None
    speaker = Speaker(subject.folder, plan.place)
    if heard is not None and speaker.tokenizer.special_ids != heard.special_ids:
        raise NotComparableError("the two tokenizers have other ids for special tokens")
    device = plan.place.device
    with StoredHead(reference, device) as first, StoredHead(subject, device) as second:
        if first.vocabulary != second.vocabulary:
            raise NotComparableError(
                f"the vocabularies have {first.vocabulary} and {second.vocabulary} rows"
            )
        with progress.task("ask the candidate", len(plan.probes), unit="probes") as task:
            task.advance(len(plan.probes) - sum(len(batch) for _, batch in todo))
            for number, batch in todo:
                prompts = [speaker.prompt(plan.probes[i]) for i in batch]
                forced, hidden = _expected(ours, number)
                said = _converse(speaker, prompts, plan, batch, forced)
                found = [one.hidden for one in said]
                scores = _score((hidden, first), (found, second), forced, speaker)
                theirs.write(_piece(number), _facts(prompts, said), _joined(scores))
                task.advance(len(batch))
    made = _hear(speaker, plan, heard) if world.first else None
    _forget(speaker)
    return made


class Yardstick:
    """Something else held against the reference on its own answers: noise, or rounding."""

    def __init__(self, name: str, stage: Stage, probes: int, rounding: RoundingPlan | None) -> None:
        self.name = name
        self._stage = stage
        self._most = probes
        self._rounding = rounding  # None: the reference itself, one probe at a time

    def batches(self, plan: Plan) -> list[tuple[int, tuple[int, ...]]]:
        """The batches that it is measured on: about the number of probes, spread over all."""
        step = max(1, -(-len(plan.probes) // self._most))
        return [(n, b) for n, b in enumerate(plan.batches) if n % step == 0]

    def finished(self, plan: Plan, world: World) -> bool:
        """Whether this process has nothing left to do for it."""
        mine = world.share(self.batches(plan))
        return all(self._stage.has(_piece(number)) for _, (number, _) in mine)

    def run(
        self,
        speaker: Speaker,
        subject: Subject,
        plan: Plan,
        reference: Stage,
        world: World,
        progress: Progress,
    ) -> None:
        """Score it; with rounding, the speaker's weights are rounded in place and stay so."""
        if self._rounding is not None:
            round_in_place(speaker.model, self._rounding)
        mine = [m for _, m in world.share(self.batches(plan)) if not self._stage.has(_piece(m[0]))]
        total = sum(len(batch) for _, batch in mine)
        with (
            StoredHead(subject, plan.place.device) as head,
            progress.task(f"measure the {self.name}", total, unit="probes") as task,
        ):
            for number, batch in mine:
                forced, hidden = _expected(reference, number)
                prompts = [speaker.prompt(plan.probes[i]) for i in batch]
                if self._rounding is not None:
                    found = speaker.force(prompts, forced)
                else:
                    pairs = zip(prompts, forced, strict=True)
                    found = [speaker.force([p], [ids])[0] for p, ids in pairs]
                scores = _score((hidden, head), (found, head), forced, speaker)
                self._stage.write(_piece(number), [], _joined(scores))
                task.advance(len(batch))

    def curve(self, plan: Plan) -> Curve:
        """What was measured, per probe."""
        keys, parts = [], []
        for number, batch in self.batches(plan):
            entry = self._stage.read(_piece(number))
            assert entry is not None  # noqa: S101  every process has come past `run`
            keys += [plan.probes[i].key for i in batch]
            parts += [scores.kl for scores in _split(entry.arrays)]
        return Curve(self.name, tuple(keys), tuple(parts))


def yardsticks(
    work: Path, reference: Subject, plan: Plan, rounding: RoundingPlan | None, probes: int
) -> list[Yardstick]:
    """Noise floor, and rounding where the candidate has packed layers; rounding comes last."""
    key = plan.key(reference)
    made = [Yardstick("noise floor", Stage(work, "floor", key), min(_HEARD, probes), None)]
    if rounding is not None:
        stage = Stage(work, "rtn", {**key, "rounding": rounding.key()})
        made.append(Yardstick("rtn", stage, probes, rounding))
    return made


def _piece(number: int) -> str:
    return f"batch-{number:05d}"


def _converse(
    speaker: Speaker,
    prompts: Sequence[Prompt],
    plan: Plan,
    batch: Sequence[int],
    forced: Sequence[Sequence[int]] | None,
) -> list[Said]:
    targets = [plan.probes[i].target for i in batch]
    asked = [target for target in targets if target is not None]
    return speaker.converse(
        prompts, new_tokens=plan.new_tokens, forced=forced, targets=asked or None
    )


def _expected(stage: Stage, number: int) -> tuple[list[list[int]], list[Tensor]]:
    """The reference's answers of a batch, and the states that predict them."""
    entry = stage.read(_piece(number))
    if entry is None:
        raise NotComparableError(
            f"the reference's {_piece(number)} is not in the work folder",
            hint="Every process needs the same --work folder, on one file system.",
        )
    ids = [list(facts["ids"]) for facts in entry.facts]
    return ids, [torch.from_numpy(entry.arrays[f"hidden-{row}"]) for row in range(len(ids))]


def _score(
    reference: tuple[Sequence[Tensor], Head],
    candidate: tuple[Sequence[Tensor], Head],
    forced: Sequence[Sequence[int]],
    speaker: Speaker,
) -> list[Scores]:
    sides = [(torch.cat(list(h)).to(speaker.device), head) for h, head in (reference, candidate)]
    labels = torch.tensor([token for ids in forced for token in ids], device=speaker.device)
    try:
        every = score_streaming(sides[0], sides[1], labels)
    except ValueError as error:
        raise NotFiniteError(f"{speaker.name}: {error}") from error
    ends = np.cumsum([len(ids) for ids in forced]).tolist()
    starts = [0, *ends[:-1]]
    return [every.part(a, b) for a, b in zip(starts, ends, strict=True)]


def _joined(scores: Sequence[Scores]) -> Arrays:
    every = join_scores(scores)
    arrays = {field.name: getattr(every, field.name) for field in fields(Scores)}
    return {**arrays, "lengths": np.array([part.n for part in scores])}


def _split(arrays: Arrays) -> list[Scores]:
    every = Scores(*(arrays[field.name] for field in fields(Scores)))
    ends = np.cumsum(arrays["lengths"]).tolist()
    return [every.part(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _facts(prompts: Sequence[Prompt], said: Sequence[Said]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": list(prompt.input_ids),
            "pixels": pixels_digest(prompt.pixel_values),
            "ids": list(one.answer.ids),
            "text": one.answer.text,
            "margins": list(one.answer.margins),
            "starts": list(one.answer.starts),
            "box": one.box,
        }
        for prompt, one in zip(prompts, said, strict=True)
    ]


def _reply(facts: Mapping[str, Any]) -> Reply:
    box = facts["box"]
    return Reply(
        tuple(facts["prompt"]),
        facts["pixels"],
        Answer(tuple(facts["ids"]), facts["text"], tuple(facts["margins"]), tuple(facts["starts"])),
        None if box is None else (box[0], box[1], box[2], box[3]),
    )


def pixels_digest(pixels: Tensor | None) -> str | None:
    """sha256 of preprocessed images, None without any."""
    return None if pixels is None else hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def _hear(speaker: Speaker, plan: Plan, reference: Heard | None) -> Heard:
    prompts = [speaker.prompt(plan.probes[i]) for i in plan.traced]
    own = [trace(speaker, prompt) for prompt in prompts]
    wanted = [] if reference is None else reference.traces
    fed = [trace(speaker, p, feed) for p, feed in zip(prompts, wanted, strict=False)]
    strings = [speaker.tokenizer.encode(text) for text in tokenizer_strings(plan.seed)]
    return Heard(strings, dict(speaker.tokenizer.special_ids), own, fed)


def _forget(speaker: Speaker) -> None:
    speaker.model = None  # the other model needs the memory
    gc.collect()

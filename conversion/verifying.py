"""Prove that a converted snapshot is what its last step makes of its source, byte by byte.

The step is planned again from the source and the lineage's options; nothing is written. What it
would make is compared with what is there. The map itself is not proved by this (a wrong map is
wrong on both sides): golden logits guard it, see `verification.compare` and tests/qwen_vl.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conversion.casting import draft_cast
from conversion.comparing import Difference, compare_tensors, difference_words, some_lines
from conversion.dequantizing import draft_dequantize
from conversion.errors import NotItsSourceError
from conversion.lora_merging import draft_merge_lora
from conversion.opened import OpenedSnapshot, open_snapshot
from conversion.options import (
    CastOptions,
    DequantizeOptions,
    MergeLoraOptions,
    RenameOptions,
    ReshardOptions,
    TextOnlyOptions,
    ToOriginalOptions,
    ToSafetensorsOptions,
    ToTransformersOptions,
)
from conversion.rename_table import draft_rename
from conversion.rewriting import Rewrite, spec_bytes
from conversion.source_check import SourceCheck
from conversion.steps import (
    draft_reshard,
    draft_to_original,
    draft_to_safetensors,
    draft_to_transformers,
)
from conversion.text_part import draft_text_only
from model_store.errors import UsageError
from model_store.manifest import Step
from model_store.options import from_table
from model_store.paths import inside
from model_store.progress import NoProgress, Progress
from model_store.tensor_sources import TensorSource, pieces
from model_store.weight_rules import TensorSpec

_STEPS: Mapping[str, tuple[type[Any], Callable[[OpenedSnapshot, Any], Rewrite]]] = {
    "to_safetensors": (ToSafetensorsOptions, draft_to_safetensors),
    "reshard": (ReshardOptions, draft_reshard),
    "cast": (CastOptions, draft_cast),
    "to_transformers": (ToTransformersOptions, draft_to_transformers),
    "to_original": (ToOriginalOptions, draft_to_original),
    "text_only": (TextOnlyOptions, draft_text_only),
    "dequantize": (DequantizeOptions, draft_dequantize),
    "merge_lora": (MergeLoraOptions, draft_merge_lora),
    "rename": (RenameOptions, draft_rename),
}
# options that are files of the user's, and so are not in the lineage; their digests are
_INPUTS = {"merge_lora": "adapter", "rename": "rules"}


@dataclass(slots=True)
class Proof:
    """What was compared, and everything that is not as it should be."""

    step: str
    source: str  # content digests
    converted: str
    tensors: int = 0
    bytes: int = 0
    files: int = 0  # files beside the weights
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # another dtype or shape
    unequal: list[Difference] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)  # bytes that are not the manifest's
    other_files: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)  # what the lineage says otherwise

    @property
    def holds(self) -> bool:
        """Whether at least one tensor was compared, and nothing was found."""
        return self.tensors > 0 and not (
            self.missing or self.extra or self.mismatched or self.unequal
            or self.digests or self.other_files or self.facts
        )  # fmt: skip

    def json(self) -> dict[str, Any]:
        return {
            "holds": self.holds,
            "step": self.step,
            "source": self.source,
            "converted": self.converted,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "files": self.files,
            "missing": self.missing,
            "extra": self.extra,
            "mismatched": self.mismatched,
            "unequal": [difference.json() for difference in self.unequal],
            "digests": self.digests,
            "other_files": self.other_files,
            "facts": self.facts,
        }

    def text(self, *, most: int = 10) -> str:
        """Say it in lines; at most `most` lines of each kind."""
        equal = self.tensors - len(self.unequal)
        lines = [
            f"{'proved' if self.holds else 'NOT proved'}: {equal} of {self.tensors} tensors are "
            f"what {self.step} makes of the source, and {self.files - len(self.other_files)} of "
            f"{self.files} files beside them"
        ]
        lines += some_lines(self.missing, "missing", most)
        lines += some_lines(self.extra, "extra", most)
        lines += some_lines(self.mismatched, "other dtype or shape", most)
        lines += some_lines([difference_words(d) for d in self.unequal], "unequal", most)
        lines += some_lines(self.digests, "not the manifest's bytes", most)
        lines += some_lines(self.other_files, "another file", most)
        lines += some_lines(self.facts, "the lineage says otherwise", most)
        return "\n".join(lines)


def verify_conversion(
    converted: Path,
    source: Path,
    *,
    inputs: Path | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Compare a snapshot with what its last step makes of its source.

    Args:
        converted: the step's result.
        source: the snapshot that it was made of.
        inputs: the adapter's folder, or the table of rules, of steps that took one.
        progress: where to report to.

    Raises:
        NotItsSourceError: the lineage names another parent, or no step of this room.
        DigestMismatchError: the source's files are not what its manifest says.
        ToolkitError: what the step itself would refuse.
    """
    progress = progress or NoProgress()
    with ExitStack() as stack:
        theirs = stack.enter_context(open_snapshot(source, progress=progress))
        ours = stack.enter_context(open_snapshot(converted, progress=progress))
        step = _last_step(ours, theirs)
        kind, draft = _STEPS[step.step]
        rewrite = draft(theirs, from_table(kind, _options(step, source, inputs)))
        proof = Proof(step.step, theirs.manifest.content_digest, ours.manifest.content_digest)
        _compare_lineage(proof, step, rewrite.step)
        _compare_files(proof, ours, theirs, rewrite)
        _compare_tensors(proof, ours, theirs, rewrite, progress)
    return proof


def _last_step(ours: OpenedSnapshot, theirs: OpenedSnapshot) -> Step:
    step = ours.manifest.lineage[-1] if ours.manifest.lineage else None
    if step is None or step.step not in _STEPS:
        made = "no step" if step is None else f"{step.step!r}"
        raise NotItsSourceError(f"{ours.folder} was made by {made}, not by a conversion")
    if step.parent != theirs.manifest.content_digest:
        raise NotItsSourceError(
            f"{ours.folder} was made of {step.parent[:12]}…, and {theirs.folder} is "
            f"{theirs.manifest.content_digest[:12]}…"
        )
    return step


def _options(step: Step, source: Path, inputs: Path | None) -> dict[str, Any]:
    options = {**step.options, "snapshot": str(source)}
    if step.step in _INPUTS:
        name = _INPUTS[step.step]
        if inputs is None:
            raise UsageError(
                f"{step.step} had a file of its own: its {name}", hint=f"Name it with --{name}."
            )
        options[name] = str(inputs)
    if "bundle" in step.facts:
        options["bundle"] = True
    return options


def _compare_lineage(proof: Proof, told: Step, again: Step) -> None:
    for key in sorted(told.facts.keys() | again.facts.keys()):
        if told.facts.get(key) != again.facts.get(key):
            proof.facts.append(f"{key} {told.facts.get(key)!r}, not {again.facts.get(key)!r}")


def _compare_files(
    proof: Proof, ours: OpenedSnapshot, theirs: OpenedSnapshot, rewrite: Rewrite
) -> None:
    proof.files = len(rewrite.written) + len(rewrite.carried)
    for path, data in rewrite.written.items():
        file = inside(ours.folder, path)
        if not file.is_file() or file.read_bytes() != data:
            proof.other_files.append(path)
    for path in rewrite.carried:
        mine, yours = ours.manifest.entry(path), theirs.manifest.entry(path)
        if mine is None or mine != yours:
            proof.other_files.append(path)


def _compare_tensors(
    proof: Proof, ours: OpenedSnapshot, theirs: OpenedSnapshot, rewrite: Rewrite, progress: Progress
) -> None:
    there = ours.infos()
    planned = {spec.name: spec for spec in rewrite.plan()}
    proof.missing = [name for name in planned if name not in there]
    proof.extra = [name for name in there if name not in planned]
    total = sum(map(spec_bytes, planned.values()))
    with (
        SourceCheck(theirs, theirs.checkpoint.files) as source_check,
        SourceCheck(ours, ours.checkpoint.files) as our_check,
        progress.task("verify", total, unit="B") as task,
    ):
        for move in rewrite.moves:
            for name in move.sources:
                source_check.wait(theirs.checkpoint.file(name))
            made = move.rearrange(theirs.checkpoint.source)
            for spec, tensor in zip(move.targets, made, strict=True):
                if spec.name in there:
                    _compare_one(proof, ours, spec, tensor)
                task.advance(tensor.nbytes)
        source_check.finish()
        our_check.finish()


def _compare_one(proof: Proof, ours: OpenedSnapshot, spec: TensorSpec, made: TensorSource) -> None:
    candidate = ours.checkpoint.source(spec.name)
    if (candidate.dtype, candidate.shape) != (spec.dtype, spec.shape):
        proof.mismatched.append(
            f"{spec.name}: {spec.dtype} {spec.shape} was planned, {candidate.dtype} "
            f"{candidate.shape} is there"
        )
        return
    proof.tensors += 1
    proof.bytes += candidate.nbytes
    digest, equal = hashlib.sha256(), True
    for mine, yours in zip(pieces(candidate), pieces(made), strict=True):
        digest.update(mine)
        equal = equal and mine == yours
    if digest.hexdigest() != ours.known_sha256(spec.name):
        proof.digests.append(spec.name)
    if not equal:
        difference = compare_tensors(spec.name, made, candidate)
        if difference is not None:
            proof.unequal.append(difference)

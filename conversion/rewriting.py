"""Write a snapshot's tensors anew under a plan: streamed, hashed, complete or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from conversion.disk_space import check_space
from conversion.errors import OddSourceError
from conversion.opened import OpenedSnapshot
from conversion.resuming import Journal
from conversion.source_check import SourceCheck
from conversion.tally import INFINITE, NAN, OVERFLOWED, Tally
from model_store.canonical import canonical_digest
from model_store.change_notice import CHANGES, changes_text
from model_store.errors import DigestMismatchError, UsageError
from model_store.files import copy_file, write_bytes
from model_store.manifest import Manifest, Step, TensorDigest, scan, write_manifest
from model_store.nonfinite import NonFiniteCounter
from model_store.paths import inside
from model_store.progress import NoProgress, Progress, Task
from model_store.remarks import remarks
from model_store.shard_plan import PlannedShard, plan_shards
from model_store.shard_writer import FORMAT_PT, ShardSet, ShardWriter
from model_store.snapshot_folder import check_target, finished_result, new_snapshot
from model_store.tensor_sources import TensorSource
from model_store.tensors import ITEM_SIZE
from model_store.torch_writer import TorchShardWriter
from model_store.weight_rules import TensorSpec

Format = Literal["safetensors", "bin"]
_OURS = frozenset({"format", "notice_of_change"})
_NAMES = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin")}


class TensorMove(Protocol):
    """Source tensors that become target tensors; `weight_rules.Move` is one kind."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> tuple[TensorSpec, ...]: ...

    @property
    def keeps_bytes(self) -> bool: ...

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]: ...


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What one step makes of a snapshot."""

    step: Step
    moves: Sequence[TensorMove]
    format: Format
    max_shard_bytes: int
    written: Mapping[str, bytes]  # files made by this step: path -> content
    carried: Sequence[str]  # files copied byte by byte
    summary: str  # a notice of change, in one sentence
    notes: Sequence[str] = ()  # more sentences for CHANGES.md
    metadata: Mapping[str, str] = field(default_factory=dict)  # for safetensors headers
    tally: Tally = field(default_factory=Tally)  # counted by the moves while they run

    def plan(self) -> list[TensorSpec]:
        """The tensors that will be written, in order."""
        return [target for move in self.moves for target in move.targets]

    def key(self) -> str:
        """What names this work: a killed run's shards are taken over when theirs is the same."""
        return canonical_digest(
            {
                "step": self.step.json(),
                "plan": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.plan()],
                "format": self.format,
                "max_shard_bytes": self.max_shard_bytes,
                "metadata": dict(self.metadata),
                "summary": self.summary,
            }
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A step's snapshot; `fresh` is False when it was there already.

    `reused` are weight files that a killed run had finished; `tally` has what was counted while
    tensors were written, and `remarks` what is odd about the source.
    """

    folder: Path
    manifest: Manifest
    fresh: bool
    reused: tuple[str, ...] = ()
    tally: Tally = field(default_factory=Tally)
    remarks: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        return {
            "path": str(self.folder),
            "content_digest": self.manifest.content_digest,
            "tensors": len(self.manifest.tensors or ()),
            "fresh": self.fresh,
            "reused": list(self.reused),
            **{kind: self.tally.counts(kind) for kind in (OVERFLOWED, NAN, INFINITE)},
            "remarks": list(self.remarks),
        }

    def sentences(self) -> list[str]:
        """What deserves a line on the terminal."""
        return [*self.remarks, *self.tally.sentences()]


def rewrite_snapshot(
    opened: OpenedSnapshot,
    target: Path,
    rewrite: Rewrite,
    *,
    replace: bool = False,
    allow_odd: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the snapshot that `rewrite` describes, unless `target` already is exactly that.

    Raises:
        OddSourceError: see `source_remarks`.
        TargetExistsError: `target` holds something else.
        WeightMapError: tensors that contradict each other; nothing is left behind.
    """
    target = target.absolute()
    done = finished_result(target, rewrite.step)
    if done is not None:
        return Result(target, done, fresh=False)
    check_target(target, replace=replace)
    odd = source_remarks(opened, allow_odd=allow_odd)
    with new_snapshot(target, replace=replace, resume_key=rewrite.key()) as building:
        manifest, reused = _write(opened, building, rewrite, odd, progress or NoProgress())
    return Result(target, manifest, True, reused, rewrite.tally, odd)


def source_remarks(opened: OpenedSnapshot, *, allow_odd: bool) -> tuple[str, ...]:
    """What is odd about the source, where that is allowed.

    Raises:
        OddSourceError: a wrong `total_size`, a dtype in config.json that no tensor has, or an
            `auto_map` into another repository; not with `allow_odd`.
        CheckpointError: a config.json that is none.
    """
    odd = remarks(opened.checkpoint, opened.folder)
    if odd and not allow_odd:
        raise OddSourceError(f"{opened.folder}: {'; '.join(odd)}")
    return odd


def _write(
    opened: OpenedSnapshot,
    building: Path,
    rewrite: Rewrite,
    odd: tuple[str, ...],
    progress: Progress,
) -> tuple[Manifest, tuple[str, ...]]:
    journal = Journal(building)
    check_space(building, bytes_needed(opened, rewrite) - journal.bytes)
    if journal.shards:
        progress.log(f"going on: {len(journal.shards)} weight files of a killed run still stand")
    specs = rewrite.plan()
    writer = _writer(building, [(spec.name, spec.dtype, spec.shape) for spec in specs], rewrite)
    with (
        writer,
        progress.task(rewrite.step.step, sum(map(spec_bytes, specs)), unit="B") as task,
    ):
        for shard in journal.shards:
            writer.reuse(shard.file, shard.tensors)
            rewrite.tally.restore(shard.tally)
            task.advance(sum(spec_bytes(tensor) for tensor in shard.tensors.values()))
        _write_tensors(opened, rewrite, writer, journal, task)
        shards = writer.finish()
    for path in rewrite.carried:
        copy_file(inside(opened.folder, path), inside(building, path))
    for path, data in rewrite.written.items():
        write_bytes(inside(building, path), data)
    write_bytes(building / CHANGES, _changes(opened, rewrite, odd))
    manifest = Manifest(
        files=scan(building, known=shards.files),
        lineage=(*opened.manifest.lineage, rewrite.step),
        tensors=shards.tensors,
    )
    write_manifest(building, manifest)
    return manifest, tuple(shard.file.path for shard in journal.reused)


def _write_tensors(
    opened: OpenedSnapshot, rewrite: Rewrite, writer: ShardSet, journal: Journal, task: Task
) -> None:
    """Write what is missing, file by file; with verification, nothing before it was checked."""
    todo = _in_file_order(rewrite.moves, writer)
    by_tensor = frozenset(
        move.sources[0]
        for move in todo
        if move.keeps_bytes and opened.known_sha256(move.sources[0]) is not None
    )
    with SourceCheck(opened, _files_to_check(opened, todo, by_tensor)) as check:
        for move in todo:
            for name in move.sources:
                check.wait(opened.checkpoint.file(name))
            known = opened.known_sha256(move.sources[0]) if move.keeps_bytes else None
            made = move.rearrange(opened.checkpoint.source)
            for target, tensor in zip(move.targets, made, strict=True):
                if target.name not in writer.digests:
                    task.note(target.name)
                    _write_one(opened, rewrite.tally, writer, target.name, tensor, known)
                    journal.add(writer, rewrite.tally)
                    task.advance(tensor.nbytes)
        check.finish()


def _write_one(
    opened: OpenedSnapshot,
    tally: Tally,
    writer: ShardSet,
    name: str,
    tensor: TensorSource,
    known: str | None,
) -> None:
    """Write a tensor; its digest is what the manifest says of the source, or is compared with it.

    Raises:
        DigestMismatchError: the source's bytes are not the manifest's.
    """
    counter = NonFiniteCounter(tensor.dtype)
    # taken over unread, a digest still tells of bytes that changed: `conversion.verify` finds them
    trusted = None if opened.verify else known
    digest = writer.add(name, tensor, counter.update, sha256=trusted)
    if known is not None and digest.sha256 != known:
        raise DigestMismatchError(f"tensor {name}", expected=known, actual=digest.sha256)
    tally.nonfinite(name, counter.found)


def _in_file_order(moves: Sequence[TensorMove], writer: ShardSet) -> list[TensorMove]:
    """The moves with something left to write, by where their first target lies in the files."""
    place = {tensor.name: number for number, tensor in enumerate(writer.plan)}
    left = [m for m in moves if any(target.name not in writer.digests for target in m.targets)]
    return sorted(left, key=lambda move: place[move.targets[0].name])


def _files_to_check(
    opened: OpenedSnapshot, todo: Sequence[TensorMove], by_tensor: frozenset[str]
) -> list[Path]:
    """Weight files to hash whole: all, but those of which every tensor is hashed on its way."""
    if not opened.verify:
        return []
    checkpoint = opened.checkpoint
    first = [checkpoint.file(name) for move in todo for name in move.sources]
    loose = {checkpoint.file(name) for name in checkpoint.names() if name not in by_tensor}
    return [file for file in dict.fromkeys([*first, *checkpoint.files]) if file in loose]


def _writer(
    building: Path, plan: Sequence[tuple[str, str, tuple[int, ...]]], rewrite: Rewrite
) -> ShardSet:
    if rewrite.format == "bin":
        return TorchShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes)
    # no digest of the parent in here: equal tensors shall give equal weight files
    metadata = {**FORMAT_PT, **rewrite.metadata, "notice_of_change": rewrite.summary}
    return ShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes, metadata=metadata)


def _changes(opened: OpenedSnapshot, rewrite: Rewrite, odd: tuple[str, ...]) -> bytes:
    notes = [
        rewrite.summary,
        *rewrite.notes,
        *[f"Of the source: {remark}." for remark in odd],
        *rewrite.tally.sentences(),
        *[f"`{path}` was written anew." for path in sorted(rewrite.written)],
        *[f"`{path}` was left out." for path in left_out(opened, rewrite)],
    ]
    return changes_text(opened.folder, opened.manifest, rewrite.step, notes)


def header_metadata(opened: OpenedSnapshot, entries: Sequence[str]) -> dict[str, str]:
    """What safetensors headers will say: the source's entries, and KEY=VALUE ones beside or over.

    Raises:
        UsageError: an entry without "=", or a key that is written here.
    """
    kept = {key: text for key, text in opened.checkpoint.metadata.items() if key not in _OURS}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not key or not equals or key in _OURS:
            raise UsageError(
                f"--metadata {entry!r} cannot be set",
                hint=f"Write KEY=VALUE; {' and '.join(sorted(_OURS))} are written by the step.",
            )
        kept[key] = text
    return kept


def planned_shards(rewrite: Rewrite) -> tuple[PlannedShard, ...]:
    """The weight files that will be written, in order.

    Raises:
        CheckpointError: a plan that cannot be written.
    """
    stem, suffix = _NAMES[rewrite.format]
    plan = [(spec.name, spec.dtype, spec.shape) for spec in rewrite.plan()]
    return plan_shards(plan, max_shard_bytes=rewrite.max_shard_bytes, stem=stem, suffix=suffix)


def spec_bytes(spec: TensorSpec | TensorDigest) -> int:
    """How many bytes a tensor takes."""
    return math.prod(spec.shape) * ITEM_SIZE[spec.dtype]


def bytes_needed(opened: OpenedSnapshot, rewrite: Rewrite) -> int:
    """What the new snapshot takes on disk, a little more rather than less."""
    specs = rewrite.plan()
    names = sum(len(spec.name) + 300 for spec in specs)
    sizes = {entry.path: entry.size for entry in opened.manifest.files}
    beside = sum(map(len, rewrite.written.values())) + sum(sizes[path] for path in rewrite.carried)
    return sum(map(spec_bytes, specs)) + 2 * names + beside


def left_out(opened: OpenedSnapshot, rewrite: Rewrite) -> list[str]:
    """Files of the source that the result does not have."""
    read = {file.relative_to(opened.folder).as_posix() for file in opened.checkpoint.files}
    kept = {CHANGES, *rewrite.carried, *rewrite.written, *read}
    return [
        entry.path
        for entry in opened.manifest.files
        if entry.path not in kept
        and not entry.path.startswith("records/")
        and not entry.path.endswith(".index.json")
    ]

"""Write a snapshot's tensors anew under a plan: streamed, hashed, complete or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from conversion.disk_space import check_space
from conversion.errors import MissingFileError
from conversion.resuming import Journal, Tally
from model_store.canonical import canonical_digest
from model_store.change_notice import CHANGES, changes_text, is_legal
from model_store.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from model_store.errors import NotASnapshotError, UsageError
from model_store.files import copy_file, write_bytes
from model_store.manifest import (
    Manifest,
    Step,
    TensorDigest,
    is_content,
    read_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)
from model_store.paths import inside
from model_store.progress import NoProgress, Progress
from model_store.shard_plan import PlannedShard, plan_shards
from model_store.shard_writer import FORMAT_PT, ShardWriter
from model_store.snapshot_folder import check_target, finished_result, new_snapshot
from model_store.tensors import ITEM_SIZE, RawTensor
from model_store.torch_writer import TorchShardWriter
from model_store.weight_rules import TensorSpec

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth"})

Format = Literal["safetensors", "bin"]
_OURS = frozenset({"format", "notice_of_change"})
_NAMES = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin")}


@dataclass(frozen=True, slots=True)
class OpenedSnapshot:
    """A snapshot whose weights are open for reading; the caller does not own it."""

    folder: Path
    manifest: Manifest
    checkpoint: Checkpoint

    def infos(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor, by name."""
        return {name: self.checkpoint.info(name) for name in self.checkpoint.names()}

    def read_file(self, path: str) -> bytes:
        """Read a small file of the snapshot.

        Raises:
            MissingFileError: the manifest does not list it.
        """
        if self.manifest.entry(path) is None:
            raise MissingFileError(path)
        return inside(self.folder, path).read_bytes()

    def companions(self) -> tuple[str, ...]:
        """Files beside the weights that go along: content files, the licence and the notice."""
        return tuple(
            entry.path
            for entry in self.manifest.files
            if (is_content(entry.path) and not _is_weights(entry.path)) or is_legal(entry.path)
        )


class TensorMove(Protocol):
    """Source tensors that become target tensors; `weight_rules.Move` is one kind."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> tuple[TensorSpec, ...]: ...

    def apply(self, read: Callable[[str], RawTensor]) -> list[RawTensor]: ...


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

    `reused` are weight files that a killed run had finished; `overflowed` counts finite values that
    became infinite, by tensor.
    """

    folder: Path
    manifest: Manifest
    fresh: bool
    reused: tuple[str, ...] = ()
    overflowed: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {
            "path": str(self.folder),
            "content_digest": self.manifest.content_digest,
            "tensors": len(self.manifest.tensors or ()),
            "fresh": self.fresh,
            "reused": list(self.reused),
            "overflowed": dict(self.overflowed),
        }

    def sentences(self) -> list[str]:
        """What deserves a line on the terminal."""
        tally = Tally()
        tally.restore(self.overflowed)
        return tally.sentences()


@contextmanager
def open_snapshot(
    folder: Path, *, verify: bool = True, progress: Progress | None = None
) -> Iterator[OpenedSnapshot]:
    """Open a snapshot for reading; with `verify`, hash every file that its manifest names first.

    Raises:
        NotASnapshotError: no manifest, or weights that it does not list.
        DigestMismatchError: a file's bytes are not the manifest's.
        CheckpointError: weights that cannot be read.
    """
    manifest = verify_snapshot(folder, progress=progress) if verify else read_manifest(folder)
    with open_checkpoint(folder) as checkpoint:
        for file in checkpoint.files:
            entry = manifest.entry(file.relative_to(folder).as_posix())
            if entry is None or entry.size != file.stat().st_size:
                raise NotASnapshotError(
                    f"{file} is not the file that the manifest of {folder} lists",
                    hint="Download the snapshot again, or adopt the folder as it is now.",
                )
        yield OpenedSnapshot(folder, manifest, checkpoint)


def rewrite_snapshot(
    opened: OpenedSnapshot,
    target: Path,
    rewrite: Rewrite,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the snapshot that `rewrite` describes, unless `target` already is exactly that.

    Raises:
        TargetExistsError: `target` holds something else.
        WeightMapError: tensors that contradict each other; nothing is left behind.
    """
    target = target.absolute()
    done = finished_result(target, rewrite.step)
    if done is not None:
        return Result(target, done, fresh=False)
    check_target(target, replace=replace)
    with new_snapshot(target, replace=replace, resume_key=rewrite.key()) as building:
        manifest, reused = _write(opened, building, rewrite, progress or NoProgress())
    return Result(target, manifest, True, reused, rewrite.tally.counts())


def _write(
    opened: OpenedSnapshot, building: Path, rewrite: Rewrite, progress: Progress
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
        reused = frozenset(writer.digests)
        for name, tensor in _made(rewrite.moves, opened.checkpoint.read, reused):
            task.note(name)
            before = len(writer.finished)
            writer.add(name, tensor)
            if len(writer.finished) > before:
                journal.add(writer, rewrite.tally)
            task.advance(tensor.nbytes)
        shards = writer.finish()
    for path in rewrite.carried:
        copy_file(inside(opened.folder, path), inside(building, path))
    for path, data in rewrite.written.items():
        write_bytes(inside(building, path), data)
    write_bytes(building / CHANGES, _changes(opened, rewrite))
    manifest = Manifest(
        files=scan(building, known=shards.files),
        lineage=(*opened.manifest.lineage, rewrite.step),
        tensors=shards.tensors,
    )
    write_manifest(building, manifest)
    return manifest, tuple(shard.file.path for shard in journal.reused)


def _made(
    moves: Sequence[TensorMove], read: Callable[[str], RawTensor], reused: frozenset[str]
) -> Iterator[tuple[str, RawTensor]]:
    """Apply the moves whose targets are not all there; yields what is missing, in order."""
    for move in moves:
        if all(target.name in reused for target in move.targets):
            continue
        for target, tensor in zip(move.targets, move.apply(read), strict=True):
            if target.name not in reused:
                yield target.name, tensor


def _writer(
    building: Path, plan: Sequence[tuple[str, str, tuple[int, ...]]], rewrite: Rewrite
) -> ShardWriter | TorchShardWriter:
    if rewrite.format == "bin":
        return TorchShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes)
    # no digest of the parent in here: equal tensors shall give equal weight files
    metadata = {**FORMAT_PT, **rewrite.metadata, "notice_of_change": rewrite.summary}
    return ShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes, metadata=metadata)


def _changes(opened: OpenedSnapshot, rewrite: Rewrite) -> bytes:
    notes = [
        rewrite.summary,
        *rewrite.notes,
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


def _is_weights(path: str) -> bool:
    return PurePosixPath(path).suffix in _WEIGHTS or path.endswith(".index.json")

"""Write a snapshot's tensors anew under a plan: streamed, hashed, complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from conversion.errors import MissingFileError
from model_store.change_notice import CHANGES, changes_text, is_legal
from model_store.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from model_store.errors import NotASnapshotError
from model_store.files import copy_file, write_bytes
from model_store.manifest import (
    Manifest,
    Step,
    is_content,
    read_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)
from model_store.paths import inside
from model_store.progress import NoProgress, Progress
from model_store.shard_writer import FORMAT_PT, ShardWriter
from model_store.snapshot_folder import check_target, finished_result, new_snapshot
from model_store.torch_writer import TorchShardWriter
from model_store.weight_rules import Move, moved, planned

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth"})

Format = Literal["safetensors", "bin"]


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


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What one step makes of a snapshot."""

    step: Step
    moves: Sequence[Move]
    format: Format
    max_shard_bytes: int
    written: Mapping[str, bytes]  # files made by this step: path -> content
    carried: Sequence[str]  # files copied byte by byte
    summary: str  # a notice of change, in one sentence


@dataclass(frozen=True, slots=True)
class Result:
    """A step's snapshot; `fresh` is False when it was there already."""

    folder: Path
    manifest: Manifest
    fresh: bool

    def json(self) -> dict[str, Any]:
        return {
            "path": str(self.folder),
            "content_digest": self.manifest.content_digest,
            "tensors": len(self.manifest.tensors or ()),
            "fresh": self.fresh,
        }


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
    with new_snapshot(target, replace=replace) as building:
        manifest = _write(opened, building, rewrite, progress or NoProgress())
    return Result(target, manifest, fresh=True)


def _write(
    opened: OpenedSnapshot, building: Path, rewrite: Rewrite, progress: Progress
) -> Manifest:
    specs = planned(rewrite.moves)
    plan = [(spec.name, spec.dtype, spec.shape) for spec in specs.values()]
    total = sum(opened.checkpoint.info(name).nbytes for m in rewrite.moves for name in m.sources)
    with (
        _writer(building, plan, rewrite) as writer,
        progress.task(rewrite.step.step, total, unit="B") as task,
    ):
        for name, tensor in moved(rewrite.moves, opened.checkpoint.read):
            task.note(name)
            writer.add(name, tensor)
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
    return manifest


def _writer(
    building: Path, plan: Sequence[tuple[str, str, tuple[int, ...]]], rewrite: Rewrite
) -> ShardWriter | TorchShardWriter:
    if rewrite.format == "bin":
        return TorchShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes)
    # no digest of the parent in here: equal tensors shall give equal weight files
    metadata = {**FORMAT_PT, "notice_of_change": rewrite.summary}
    return ShardWriter(building, plan, max_shard_bytes=rewrite.max_shard_bytes, metadata=metadata)


def _changes(opened: OpenedSnapshot, rewrite: Rewrite) -> bytes:
    notes = [
        rewrite.summary,
        *[f"`{path}` was written anew." for path in sorted(rewrite.written)],
        *[f"`{path}` was left out." for path in _left_out(opened, rewrite)],
    ]
    return changes_text(opened.folder, opened.manifest, rewrite.step, notes)


def _left_out(opened: OpenedSnapshot, rewrite: Rewrite) -> list[str]:
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

"""A snapshot that is open for reading, and whether its bytes are what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from conversion.errors import ConflictingWeightsError, MissingFileError
from model_store.change_notice import is_legal
from model_store.checkpoint import Checkpoint, TensorInfo, open_checkpoint, open_rivals
from model_store.errors import CheckpointError, NotASnapshotError
from model_store.manifest import Manifest, check_file, is_content, read_manifest
from model_store.paths import inside
from model_store.progress import NoProgress, Progress
from model_store.tensor_sources import same_bytes

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth"})


@dataclass(frozen=True, slots=True)
class OpenedSnapshot:
    """A snapshot whose weights are open for reading; the caller does not own it."""

    folder: Path
    manifest: Manifest
    checkpoint: Checkpoint
    verify: bool = False  # the weights' bytes are to be compared with the manifest when read

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

    def known_sha256(self, name: str) -> str | None:
        """The sha256 of a tensor's bytes, where the manifest has it for this dtype and shape."""
        told = (self.manifest.tensors or {}).get(name)
        info = self.checkpoint.info(name)
        same = told is not None and (told.dtype, told.shape) == (info.dtype, info.shape)
        return told.sha256 if told is not None and same else None

    def companions(self) -> tuple[str, ...]:
        """Files beside the weights that go along: content files, the licence and the notice."""
        return tuple(
            entry.path
            for entry in self.manifest.files
            if (is_content(entry.path) and not _is_weights(entry.path)) or is_legal(entry.path)
        )


@contextmanager
def open_snapshot(
    folder: Path, *, verify: bool = True, progress: Progress | None = None
) -> Iterator[OpenedSnapshot]:
    """Open a snapshot for reading.

    With `verify`, every file but the weights is hashed now, and whoever reads the weights compares
    them with the manifest too (`SourceCheck`): their bytes are then read once, not twice.

    Raises:
        NotASnapshotError: no manifest, or weights that it does not list.
        DigestMismatchError: a file's bytes are not the manifest's.
        ConflictingWeightsError: safetensors and torch files side by side that differ.
        CheckpointError: weights that cannot be read.
    """
    manifest = read_manifest(folder)
    with _weights(folder, manifest, verify=verify) as checkpoint:
        used = {file.relative_to(folder).as_posix() for file in checkpoint.files}
        for path in sorted(used):
            entry = manifest.entry(path)
            if entry is None or entry.size != (folder / path).stat().st_size:
                raise NotASnapshotError(
                    f"{folder / path} is not the file that the manifest of {folder} lists",
                    hint="Download the snapshot again, or adopt the folder as it is now.",
                )
        if verify:
            for entry in manifest.files:
                if entry.path not in used:
                    check_file(folder, entry)
            _check_rivals(folder, checkpoint, progress or NoProgress())
        yield OpenedSnapshot(folder, manifest, checkpoint, verify)


def _weights(folder: Path, manifest: Manifest, *, verify: bool) -> Checkpoint:
    try:
        return open_checkpoint(folder)
    except CheckpointError:
        if verify:  # a file that was damaged is named as that, and not as hostile
            for entry in manifest.files:
                check_file(folder, entry)
        raise


def _check_rivals(folder: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """Compare the weights that will be read with those of another format beside them."""
    for rival in open_rivals(folder):
        with rival, progress.task("compare formats", len(rival.names()), unit="tensors") as task:
            ours, theirs = set(checkpoint.names()), set(rival.names())
            odd = sorted(ours ^ theirs)
            for name in sorted(ours & theirs):
                if not same_bytes(checkpoint.source(name), rival.source(name)):
                    odd.append(name)
                task.advance()
            if odd:
                raise ConflictingWeightsError(checkpoint.files[0], rival.files[0], odd)


def _is_weights(path: str) -> bool:
    return PurePosixPath(path).suffix in _WEIGHTS or path.endswith(".index.json")

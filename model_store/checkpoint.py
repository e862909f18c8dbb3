"""Open a checkpoint, in whatever files it comes, as names, shapes and bytes.

Safetensors and torch zip files, whole or in shards with an index. No file is mapped or loaded;
pickles are read as data and never run; everything is checked before the first tensor is given out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from model_store.checkpoint_layout import ShardList, rival_lists, shard_list
from model_store.errors import CheckpointError, UnsafeCheckpointError
from model_store.safetensors_file import SafetensorsFile
from model_store.tensor_sources import TensorSource, in_memory
from model_store.tensors import RawTensor, TensorInfo
from model_store.torch_zip import TorchZipFile

__all__ = ["Checkpoint", "TensorFile", "TensorInfo", "open_checkpoint"]


class TensorFile(Protocol):
    """One weight file of whichever format, checked when it was opened."""

    path: Path
    metadata: dict[str, str]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def source(self, name: str) -> TensorSource: ...

    def check_sums(self) -> None: ...

    def close(self) -> None: ...


class Checkpoint:
    """The tensors of one or several weight files; use it as a context manager."""

    def __init__(self, files: Sequence[TensorFile], *, promised_size: int | None = None) -> None:
        """Join checked files; `promised_size` is the index's total, which `remarks` compares.

        Raises:
            UnsafeCheckpointError: two files hold a tensor of the same name.
        """
        self.promised_size = promised_size
        self._files = tuple(files)
        self._owner: dict[str, TensorFile] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self._owner:
                    raise UnsafeCheckpointError(
                        f"tensor {name!r} is in {self._owner[name].path.name} "
                        f"and again in {file.path.name}"
                    )
                self._owner[name], self._infos[name] = file, info

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, in the order that `names` walks through them."""
        return tuple(file.path for file in self._files)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What safetensors headers say under `__metadata__`; the first file wins."""
        joined: dict[str, str] = {}
        for file in reversed(self._files):
            joined |= file.metadata
        return MappingProxyType(joined)

    def names(self) -> Sequence[str]:
        """Every tensor's name, in the order of the files and of the data in them."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's dtype and shape.

        Raises:
            CheckpointError: no such tensor.
        """
        self._file(name)
        return self._infos[name]

    def file(self, name: str) -> Path:
        """Return the weight file that holds a tensor."""
        return self._file(name).path

    def source(self, name: str) -> TensorSource:
        """Return where a tensor's bytes are; they are read, from the open file, as asked for.

        Raises:
            CheckpointError: no such tensor.
        """
        return self._file(name).source(name)

    def read(self, name: str) -> RawTensor:
        """Read a tensor into memory of its own.

        Raises:
            CheckpointError: no such tensor, or a file that was changed since it was opened.
        """
        return in_memory(self.source(name))

    def check_sums(self) -> None:
        """Compare the data with the checksums inside the files; only torch's have any.

        Raises:
            CheckpointError: naming the first damaged entry.
        """
        for file in self._files:
            file.check_sums()

    def _file(self, name: str) -> TensorFile:
        try:
            return self._owner[name]
        except KeyError as error:
            raise CheckpointError(f"no tensor {name!r} in this checkpoint") from error

    def close(self) -> None:
        """Close the files; tensors that were read stay."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open the weights of a folder, or one weight file.

    In a folder, safetensors win over torch files, and an index says which shards there are.

    Raises:
        CheckpointError: no weights, several that compete, or a file that cannot be read as weights.
        UnsafeCheckpointError: a file that would run code or lies about its data; index paths that
            leave the folder; an index that does not say what the shards hold.
    """
    return _opened(shard_list(Path(path)))


def open_rivals(folder: Path) -> Iterator[Checkpoint]:
    """Open, one after the other, the weights of other formats beside those of `open_checkpoint`.

    Raises:
        CheckpointError, UnsafeCheckpointError: as `open_checkpoint`.
    """
    for shards in rival_lists(folder):
        yield _opened(shards)


def _opened(shards: ShardList) -> Checkpoint:
    opened: list[TensorFile] = []
    try:
        for file in shards.files:
            opened.append(_open_file(file))  # noqa: PERF401  the ones opened so far get closed
        _check_index(shards, opened)
        return Checkpoint(opened, promised_size=shards.total_size)
    except BaseException:
        for done in opened:
            done.close()
        raise


def _open_file(path: Path) -> TensorFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return TorchZipFile(path)


def _check_index(shards: ShardList, files: Sequence[TensorFile]) -> None:
    if shards.weight_map is None:
        return
    found: dict[str, Path] = {}
    for file in files:
        for name in file.tensors:
            promised = shards.weight_map.get(name)
            if promised is None:
                raise CheckpointError(f"{file.path}: the index does not list tensor {name!r}")
            if promised != file.path:
                raise UnsafeCheckpointError(
                    f"tensor {name!r} is in {file.path.name}; the index says {promised.name}"
                )
            found[name] = file.path
    missing = next((name for name in shards.weight_map if name not in found), None)
    if missing is not None:
        raise CheckpointError(f"{shards.weight_map[missing]} does not hold tensor {missing!r}")

"""What a checkpoint holds: names, shapes, dtypes, bytes, parameters by part, odd values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conversion.layouts import layout_of, read_json_file
from model_store.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from model_store.nonfinite import NonFinite, count_nonfinite
from model_store.progress import NoProgress, Progress, human_bytes
from model_store.remarks import remarks
from model_store.weight_rules import split_index

_BESIDE = frozenset({"qzeros", "scales", "g_idx"})  # of a packed module: no weights of the model


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor; `parameters` of packed words are the codes in them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    parameters: int
    file: str
    values: NonFinite | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors whose names start alike."""

    name: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything `inspect` says."""

    files: Mapping[str, int]  # name -> bytes on disk
    metadata: Mapping[str, str]
    layout: str
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = ()  # what is odd about it

    @property
    def parameters(self) -> int:
        return sum(entry.parameters for entry in self.entries)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def dtypes(self) -> dict[str, int]:
        """Bytes by dtype, most first."""
        sizes: Counter[str] = Counter()
        for entry in self.entries:
            sizes[entry.dtype] += entry.bytes
        return dict(sizes.most_common())

    def parts(self) -> list[Part]:
        """Tensors by what their names start with, up to a layer index."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries:
            groups.setdefault(_part(entry.name), []).append(entry)
        return [
            Part(name, len(group), sum(e.parameters for e in group), sum(e.bytes for e in group))
            for name, group in groups.items()
        ]

    def json(self) -> dict[str, Any]:
        return {
            "files": dict(self.files),
            "metadata": dict(self.metadata),
            "layout": self.layout,
            "tensors": [_entry_json(entry) for entry in self.entries],
            "parameters": self.parameters,
            "bytes": self.bytes,
            "bytes_by_dtype": self.dtypes(),
            "parts": [asdict(part) for part in self.parts()],
            "remarks": list(self.remarks),
        }

    def text(self) -> str:
        """Say it in lines; tensors that differ by a layer index only share one."""
        dtypes = ", ".join(f"{kind} {human_bytes(size)}" for kind, size in self.dtypes().items())
        lines = [
            f"{len(self.entries)} tensors, {self.parameters:,} parameters, "
            f"{human_bytes(self.bytes)} in {len(self.files)} files ({dtypes})",
            f"layout: {self.layout}",
            *[f"  {name}: {human_bytes(size)}" for name, size in self.files.items()],
            *[f"__metadata__ {key}: {text}" for key, text in self.metadata.items()],
            *[f"remark: {remark}" for remark in self.remarks],
            "",
            *_table(self.parts()),
            "",
            *_tensor_lines(self.entries),
            *_odd_lines(self.entries),
        ]
        return "\n".join(lines)


def inspect_checkpoint(
    path: Path | str, *, values: bool = False, progress: Progress | None = None
) -> Inventory:
    """List a checkpoint's tensors; a folder, an index or one weight file, no manifest needed.

    Args:
        path: what to look at.
        values: read all data, compare it with the checksums inside the files, and count NaN and
            infinity.
        progress: where to report to.

    Raises:
        CheckpointError: weights that cannot be read.
        StoreError: a config.json that cannot be read.
    """
    place = Path(path)
    folder = place if place.is_dir() else place.parent
    config = read_json_file(folder / "config.json") if (folder / "config.json").is_file() else {}
    with open_checkpoint(place) as checkpoint:
        if values:
            checkpoint.check_sums()
        entries = tuple(_entries(checkpoint, _bits(config), values, progress or NoProgress()))
        return Inventory(
            files={file.name: file.stat().st_size for file in checkpoint.files},
            metadata=checkpoint.metadata,
            layout=layout_of(config).value,
            entries=entries,
            remarks=remarks(checkpoint, folder),
        )


def _entries(
    checkpoint: Checkpoint, bits: int | None, values: bool, progress: Progress
) -> Iterator[Entry]:
    names = frozenset(checkpoint.names())
    total = sum(checkpoint.info(name).nbytes for name in names) if values else 0
    with progress.task("inspect", total, unit="B") as task:
        for name in checkpoint.names():
            info = checkpoint.info(name)
            odd = count_nonfinite(checkpoint.source(name)) if values else None
            if values:
                task.advance(info.nbytes)
            yield Entry(
                name,
                info.dtype,
                info.shape,
                info.nbytes,
                _parameters(name, info, names, bits),
                checkpoint.file(name).name,
                odd,
            )


def _bits(config: Mapping[str, Any]) -> int | None:
    quantization = config.get("quantization_config")
    bits = quantization.get("bits") if isinstance(quantization, Mapping) else None
    return bits if type(bits) is int and 0 < bits <= 32 else None


def _parameters(name: str, info: TensorInfo, names: frozenset[str], bits: int | None) -> int:
    module, _, kind = name.rpartition(".")
    if kind == "qweight" and bits is not None:
        return info.nbytes * 8 // bits
    if kind in _BESIDE and f"{module}.qweight" in names:
        return 0
    return info.elements


def _part(name: str) -> str:
    template, index = split_index(name)
    head = template.partition(".{}")[0] if index else name
    pieces = head.split(".")
    return head if index or len(pieces) == 1 else ".".join(pieces[:-1])


def _entry_json(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    if entry.values is None:
        del values["values"]
    return values


def _table(parts: Sequence[Part]) -> list[str]:
    width = max((len(part.name) for part in parts), default=0)
    return [
        f"{part.name:<{width}}  {part.tensors:>6} tensors  {part.parameters:>15,} parameters  "
        f"{human_bytes(part.bytes):>9}"
        for part in parts
    ]


def _tensor_lines(entries: Iterable[Entry]) -> list[str]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for entry in entries:
        template, index = split_index(entry.name)
        groups.setdefault((template, entry.dtype, entry.shape), []).append(index)
    lines = []
    for (template, dtype, shape), indices in groups.items():
        name = template.replace("{}", _ranges(indices)) if indices[0] else template
        lines.append(f"{name}  {dtype} {list(shape)}")
    return lines


def _ranges(indices: Sequence[str]) -> str:
    numbers = sorted(map(int, indices))
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}" if len(numbers) == 1 else f"{{{numbers[0]}…{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def _odd_lines(entries: Sequence[Entry]) -> list[str]:
    if not any(entry.values is not None for entry in entries):
        return []
    odd = [e for e in entries if e.values is not None and (e.values.nan or e.values.infinite)]
    if not odd:
        return ["", "no NaN and no infinity"]
    return [
        "",
        *[f"{e.name}: {e.values.nan} NaN, {e.values.infinite} infinite" for e in odd if e.values],
    ]

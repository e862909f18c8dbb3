"""Plan a cast: which tensors change their dtype, and what config.json says afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from conversion.config_dtype import with_dtype
from conversion.float_casts import AT_ONCE, CASTABLE, FLOAT_NAMES, cast
from conversion.layouts import read_json_file
from conversion.made_tensor import MadeTensor
from conversion.opened import OpenedSnapshot
from conversion.options import CastOptions, parse_size
from conversion.qwen_vl_files import CONFIG, SideFiles, json_bytes
from conversion.rewriting import Result, Rewrite, TensorMove, header_metadata
from conversion.running import run_draft
from conversion.steps import format_of, rewrite_of, step_of
from conversion.tally import Tally
from model_store.checkpoint import TensorInfo
from model_store.errors import UsageError
from model_store.progress import Progress
from model_store.tensor_sources import TensorSource
from model_store.tensors import ITEM_SIZE, RawTensor
from model_store.weight_rules import TensorSpec

_NAMES = {short: name for name, short in FLOAT_NAMES.items()}
_PACKED = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class CastMove:
    """One tensor under its own name, in another float dtype or as it is."""

    source: str
    dtype: str  # the source's
    target: TensorSpec
    tally: Tally

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def targets(self) -> tuple[TensorSpec, ...]:
        return (self.target,)

    @property
    def keeps_bytes(self) -> bool:
        return self.dtype == self.target.dtype

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]:
        tensor = source(self.source)
        if self.keeps_bytes:
            return [tensor]
        return [cast_source(tensor, self.target, self.tally)]


def cast_source(tensor: TensorSource, target: TensorSpec, tally: Tally) -> TensorSource:
    """Return a tensor whose elements are cast as they are read, a few at a time."""
    width = ITEM_SIZE[tensor.dtype]
    buffer = memoryview(bytearray(min(AT_ONCE * width, tensor.nbytes)))

    def make(first: int, last: int) -> memoryview:
        piece = buffer[: (last - first) * width]
        tensor.read_into(piece, first * width)
        made, overflowed = cast(RawTensor(tensor.dtype, (last - first,), piece), target.dtype)
        tally.overflow(target.name, overflowed)
        return made.data

    elements = TensorInfo(tensor.dtype, tensor.shape).elements
    return MadeTensor(target, units=elements, at_once=AT_ONCE, make=make)


def cast_snapshot(
    folder: Path, target: Path, options: CastOptions, *, progress: Progress | None = None
) -> Result:
    """Write any snapshot with its floating-point tensors in another dtype.

    Raises:
        UsageError: a pattern that matches no tensor.
        CheckpointError: weights that cannot be read.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_cast, options, progress=progress)


def draft_cast(opened: OpenedSnapshot, options: CastOptions) -> Rewrite:
    """Plan the cast; see `cast_snapshot`."""
    size = parse_size(options.max_shard_size)
    infos = opened.infos()
    chosen = _chosen(infos, options)
    dtype, tally = FLOAT_NAMES[options.to], Tally()
    moves: list[TensorMove] = []
    for name, info in infos.items():
        made = dtype if name in chosen else info.dtype
        moves.append(CastMove(name, info.dtype, TensorSpec(name, made, info.shape), tally))
    files = _files(opened, [move.targets[0] for move in moves])
    step = step_of("cast", options, opened, moves, {"cast": len(chosen)})
    summary = f"Changed by modelferry: {len(chosen)} tensors were cast to {options.to}."
    made_of = rewrite_of(step, moves, format_of(opened), size, files, summary)
    return replace(
        made_of,
        tally=tally,
        metadata=header_metadata(opened, options.metadata),
        notes=_notes(infos, chosen, dtype),
    )


def _chosen(infos: Mapping[str, TensorInfo], options: CastOptions) -> frozenset[str]:
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in infos):
            raise UsageError(
                f"pattern {pattern!r} matches no tensor",
                hint="`python -m conversion.inspect` lists the names.",
            )
    dtype = FLOAT_NAMES[options.to]
    return frozenset(
        name
        for name, info in infos.items()
        if info.dtype in CASTABLE
        and info.dtype != dtype
        and not is_packed(name, infos)
        and (not options.include or _matches(name, options.include))
        and not _matches(name, options.exclude)
    )


def is_packed(name: str, infos: Mapping[str, object]) -> bool:
    """Whether a tensor is part of a quantized module: its kernels expect the dtypes it has."""
    module, _, kind = name.rpartition(".")
    return kind in _PACKED and f"{module}.qweight" in infos


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _files(opened: OpenedSnapshot, made: Sequence[TensorSpec]) -> SideFiles:
    """Let config.json name the dtype that most of the bytes now have."""
    carried = opened.companions()
    sizes: Counter[str] = Counter()
    for spec in made:
        if spec.dtype in CASTABLE:
            sizes[spec.dtype] += TensorInfo(spec.dtype, spec.shape).nbytes
    if CONFIG not in carried or not sizes:
        return SideFiles({}, carried)
    config = read_json_file(opened.folder / CONFIG)
    changed = with_dtype(config, _NAMES[sizes.most_common(1)[0][0]])
    if changed == config:
        return SideFiles({}, carried)
    others = tuple(path for path in carried if path != CONFIG)
    return SideFiles({CONFIG: json_bytes(changed)}, others)


def _notes(infos: Mapping[str, TensorInfo], chosen: frozenset[str], dtype: str) -> tuple[str, ...]:
    kept = Counter(
        info.dtype for name, info in infos.items() if name not in chosen and info.dtype != dtype
    )
    if not kept:
        return ()
    counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(kept.items()))
    return (f"Other tensors kept their dtype: {counts}.",)

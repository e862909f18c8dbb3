"""Compare two checkpoints tensor by tensor, across the two layouts of Qwen-VL where need be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conversion.distances import differing_numbers, distances, element_pairs
from conversion.layouts import Layout, layout_of, read_json_file, vision_heads
from conversion.rename_table import read_rules
from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.errors import WeightMapError
from model_store.progress import NoProgress, Progress
from model_store.tensor_sources import TensorSource
from model_store.weight_rules import Move, Op, TensorSpec
from qwen_vl.weight_map import native_plan


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor whose dtype or shape differs, as "BF16 (4, 4)".

    Where only the dtype does, the values are compared as numbers: how many differ, and how far.
    """

    name: str
    reference: str
    candidate: str
    differing: int | None = None
    max_abs: float | None = None
    mean_abs: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor whose bytes differ.

    The distances are None where numbers cannot tell them: NaN or infinity.
    """

    name: str
    elements: int
    differing: int
    max_abs: float | None
    mean_abs: float | None

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """What `diff_checkpoints` found; names are native ones when the layouts differ."""

    layouts: tuple[str, str]
    compared: int  # tensors that both sides have with the same dtype and shape
    missing: tuple[str, ...]  # in the reference only
    extra: tuple[str, ...]  # in the candidate only
    unmapped: tuple[str, ...]  # why a tensor has no place in the other layout
    mismatched: tuple[Mismatch, ...]
    unequal: tuple[Difference, ...]
    hints: tuple[str, ...] = ()  # what may explain the differences, in a sentence each

    @property
    def identical(self) -> bool:
        """Every tensor is on both sides with the same dtype, shape and bytes; at least one is."""
        return self.compared > 0 and not (
            self.missing or self.extra or self.unmapped or self.mismatched or self.unequal
        )

    def json(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "layouts": list(self.layouts),
            "compared": self.compared,
            "missing": list(self.missing),
            "extra": list(self.extra),
            "unmapped": list(self.unmapped),
            "mismatched": [
                {
                    "name": m.name,
                    "reference": m.reference,
                    "candidate": m.candidate,
                    "differing": m.differing,
                    "max_abs": m.max_abs,
                    "mean_abs": m.mean_abs,
                }
                for m in self.mismatched
            ],
            "unequal": [difference.json() for difference in self.unequal],
            "hints": list(self.hints),
        }

    def text(self, *, most: int = 10) -> str:
        """Say it in lines; at most `most` lines of each kind."""
        equal = self.compared - len(self.unequal)
        lines = [f"{'identical' if self.identical else 'different'}: {equal} tensors are equal"]
        lines += some_lines(self.missing, "missing", most)
        lines += some_lines(self.extra, "extra", most)
        lines += some_lines(self.unmapped, "no place", most)
        lines += some_lines(
            [_mismatch_words(m) for m in self.mismatched], "other dtype or shape", most
        )
        lines += some_lines([difference_words(d) for d in self.unequal], "unequal", most)
        lines += [f"hint: {hint}" for hint in self.hints]
        return "\n".join(lines)


def diff_checkpoints(
    a: Path | str,
    b: Path | str,
    *,
    rules: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare every tensor of reference `a` with candidate `b`, bit by bit.

    Folders or weight files, in any format. When one is in Qwen-VL's original layout and the other
    in the native one, the original's tensors are mapped first; with a table of `rules`, the
    reference's are, by it. What has no counterpart is in the report and makes it not identical.

    Raises:
        CheckpointError: weights that cannot be read.
        StoreError: a config.json that cannot be read.
        RuleTableError, WeightMapError: rules that cannot be read, or do not fit the reference.
    """
    with ExitStack() as stack:
        sides = [_open(stack, Path(path)) for path in (a, b)]
        mapped = {side.layout for side in sides} == {Layout.ORIGINAL, Layout.NATIVE}
        plans = [_plan(side, to_native=mapped and rules is None) for side in sides]
        if rules is not None:
            infos = {name: sides[0].checkpoint.info(name) for name in sides[0].checkpoint.names()}
            plans[0] = _Plan(read_rules(rules).plan(infos)[0], ())
        return _compare(sides, plans, progress or NoProgress())


@dataclass(frozen=True, slots=True)
class _Side:
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Plan:
    moves: Sequence[Move]
    unmapped: tuple[str, ...]

    def specs(self) -> dict[str, TensorSpec]:
        return {target.name: target for move in self.moves for target in move.targets}


def _open(stack: ExitStack, path: Path) -> _Side:
    checkpoint = stack.enter_context(open_checkpoint(path))
    config_file = (path if path.is_dir() else path.parent) / "config.json"
    config = read_json_file(config_file) if config_file.is_file() else {}
    return _Side(checkpoint, config, layout_of(config))


def _plan(side: _Side, *, to_native: bool) -> _Plan:
    maps = to_native and side.layout is Layout.ORIGINAL
    heads = vision_heads(side.config) if maps else 1
    moves: list[Move] = []
    unmapped: list[str] = []
    for name in side.checkpoint.names():
        info = side.checkpoint.info(name)
        if not maps:
            target = TensorSpec(name, info.dtype, info.shape)
            moves.append(Move(Op.RENAME, (name,), (target,), heads))
            continue
        try:  # one by one, so that a tensor without a place is reported beside all others
            moves += native_plan({name: info}, vision_heads=heads)
        except WeightMapError as error:
            unmapped.append(str(error))
    return _Plan(moves, tuple(unmapped))


def _compare(sides: Sequence[_Side], plans: Sequence[_Plan], progress: Progress) -> Report:
    reference, candidate = (plan.specs() for plan in plans)
    common = {
        name
        for name, spec in reference.items()
        if name in candidate and spec.shape == candidate[name].shape
    }
    cast = {name for name in common if reference[name].dtype != candidate[name].dtype}
    found = list(_unequal(sides, plans, common, progress))
    distances = {difference.name: difference for difference in found}
    report = Report(
        layouts=(sides[0].layout.value, sides[1].layout.value),
        compared=len(common) - len(cast),
        missing=tuple(name for name in reference if name not in candidate),
        extra=tuple(name for name in candidate if name not in reference),
        unmapped=(*plans[0].unmapped, *plans[1].unmapped),
        mismatched=tuple(
            _mismatch(name, spec, candidate[name], name in cast, distances.get(name))
            for name, spec in reference.items()
            if name in candidate and (name in cast or name not in common)
        ),
        unequal=tuple(difference for difference in found if difference.name not in cast),
    )
    configs = (sides[0].config, sides[1].config)
    return replace(report, hints=tuple(_hints(report, reference, candidate, configs)))


def _mismatch(
    name: str,
    reference: TensorSpec,
    candidate: TensorSpec,
    comparable: bool,
    difference: Difference | None,
) -> Mismatch:
    kinds = (_kind(reference), _kind(candidate))
    if not comparable:
        return Mismatch(name, *kinds)
    if difference is None:
        return Mismatch(name, *kinds, 0, 0.0, 0.0)
    return Mismatch(name, *kinds, difference.differing, difference.max_abs, difference.mean_abs)


def _hints(
    report: Report,
    reference: Mapping[str, TensorSpec],
    candidate: Mapping[str, TensorSpec],
    configs: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    dtypes = [m for m in report.mismatched if m.differing is not None]
    if dtypes and all(m.differing == 0 for m in dtypes):
        yield "the tensors of another dtype hold the same numbers: a cast that lost nothing."
    elif dtypes:
        yield "one side was cast: see max |Δ|; conversion.cast gives both the same dtype."
    if any(m.differing is None for m in report.mismatched):
        yield "shapes differ: another size of model, or rows padded or transposed."
    packed = [any(name.endswith(".qweight") for name in side) for side in (reference, candidate)]
    if packed[0] != packed[1]:
        yield (
            "one side is quantized: its weights cannot be equal; compare what the models say "
            "with verification.compare, or take it apart with conversion.dequantize."
        )
    ends = tuple(
        name for name in (*report.missing, *report.extra) if name.endswith("lm_head.weight")
    )
    if ends and any(config.get("tie_word_embeddings") is True for config in configs):
        yield f"{ends[0]} is tied to the embeddings: the other side writes it once."
    prefix = _prefix(report.missing, report.extra)
    if prefix:
        yield f"names differ by the prefix {prefix!r}: conversion.rename can take it away."


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> str:
    """What one side's names have in front of the other's; empty when that is not it."""
    if not missing or len(missing) != len(extra):
        return ""
    longer, shorter = (missing, extra) if len(missing[0]) > len(extra[0]) else (extra, missing)
    head = longer[0].partition(".")[0] + "."
    return head if {name.removeprefix(head) for name in longer} == set(shorter) else ""


def _unequal(
    sides: Sequence[_Side], plans: Sequence[_Plan], common: set[str], progress: Progress
) -> Iterator[Difference]:
    # the side with the fused tensors leads, so that each is taken apart once
    lead = 0 if any(len(move.targets) > 1 for move in plans[0].moves) else 1
    other = {move.targets[0].name: move for move in plans[1 - lead].moves}
    with progress.task("compare", len(common), unit="tensors") as task:
        for move in plans[lead].moves:
            wanted = [target.name for target in move.targets if target.name in common]
            if not wanted:
                continue
            made = move.rearrange(sides[lead].checkpoint.source)
            named = {target.name: tensor for target, tensor in zip(move.targets, made, strict=True)}
            for name in wanted:
                (against,) = other[name].rearrange(sides[1 - lead].checkpoint.source)
                pair = (named[name], against) if lead == 0 else (against, named[name])
                difference = compare_tensors(name, *pair)
                if difference is not None:
                    yield difference
                task.advance()


def compare_tensors(
    name: str, reference: TensorSource, candidate: TensorSource
) -> Difference | None:
    """Compare two tensors of one shape; None when they are equal.

    Of one dtype: bit by bit. Of two: as numbers, where every NaN is like another. A few elements
    are in memory at a time, whatever the size of the tensors.
    """
    if reference.dtype != candidate.dtype:
        differing = differing_numbers(reference, candidate)
    else:
        differing = sum(
            0 if ours.data == theirs.data else int(np.count_nonzero(ours.bits() != theirs.bits()))
            for ours, theirs in element_pairs(reference, candidate)
        )
    if differing == 0:
        return None
    elements = math.prod(reference.shape)
    return Difference(name, elements, differing, *distances(reference, candidate))


def _kind(spec: TensorSpec) -> str:
    return f"{spec.dtype} {spec.shape}"


def _mismatch_words(mismatch: Mismatch) -> str:
    words = f"{mismatch.name}: {mismatch.reference} against {mismatch.candidate}"
    if mismatch.differing is None:
        return words
    if mismatch.differing == 0:
        return f"{words}, the same numbers"
    words += f", {mismatch.differing} numbers differ"
    if mismatch.max_abs is None:
        return words
    return f"{words}, max |Δ| {mismatch.max_abs:.3g}, mean |Δ| {mismatch.mean_abs:.3g}"


def difference_words(difference: Difference) -> str:
    """Say it in a line."""
    words = f"{difference.name}: {difference.differing} of {difference.elements} elements"
    if difference.max_abs is None:
        return words
    return f"{words}, max |Δ| {difference.max_abs:.3g}, mean |Δ| {difference.mean_abs:.3g}"


def some_lines(items: Sequence[str], label: str, most: int) -> list[str]:
    """A line for each item, and one for those over `most`."""
    lines = [f"{label}: {item}" for item in items[:most]]
    return [*lines, f"{label}: {len(items) - most} more"] if len(items) > most else lines

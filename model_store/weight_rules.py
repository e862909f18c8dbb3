"""Rename, split and fuse tensors by a literal table that can be read in both directions.

A `WeightMap` is a table of `Rule`s. Planning looks at names, dtypes and shapes only and finds every
misfit before a byte is read; a `Move` then turns source tensors into target tensors, one group at a
time, as bytes: no value is ever rounded, and every move has an exact inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from model_store.canonical import canonical_digest
from model_store.errors import (
    MissingPartError,
    UnequalPartsError,
    UnevenSplitError,
    UnmappedTensorError,
    WeightMapError,
)
from model_store.rearranging import put_together, taken_apart
from model_store.tensor_sources import TensorSource, in_memory, same_bytes
from model_store.tensors import RawTensor, from_bits

Shape = tuple[int, ...]


class Op(StrEnum):
    """How one source tensor becomes its targets."""

    RENAME = "rename"
    TRANSPOSE = "transpose"  # (a, b) -> (b, a)
    ROWS = "rows"  # equal parts of dim 0
    COLUMNS = "columns"  # equal parts of dim 1
    HEADS = "heads"  # dim 0 holds q0 k0 v0 q1 k1 v1 …, each head_dim rows
    COPY = "copy"  # the whole tensor to each target; backwards they must be equal


class TensorInfo(Protocol):
    """What planning needs to know of a tensor."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a move makes."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Rule:
    """One source tensor becomes one or more target tensors.

    `{}` stands for a layer index, and occurs once in every name or in none.
    """

    source: str
    targets: tuple[str, ...]
    op: Op = Op.RENAME

    def __post_init__(self) -> None:
        counts = {name.count("{}") for name in (self.source, *self.targets)}
        if len(counts) != 1 or counts > {0, 1} or (len(self.targets) == 1) != (self.op in _ONE):
            raise WeightMapError(f"the rule for {self.source!r} contradicts itself")


_ONE = frozenset({Op.RENAME, Op.TRANSPOSE})


@dataclass(frozen=True, slots=True)
class Move:
    """One planned step: the source tensors to read and the target tensors they become."""

    op: Op
    sources: tuple[str, ...]
    targets: tuple[TensorSpec, ...]
    heads: int  # for Op.HEADS only

    @property
    def keeps_bytes(self) -> bool:
        """Whether every target has the source's bytes, under another name at most."""
        return len(self.sources) == 1 and self.op in (Op.RENAME, Op.COPY)

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]:
        """Return where the targets' bytes are to be had, in the order of `targets`.

        No byte is read yet, but for transposed matrices, and copies that are fused.

        Raises:
            UnequalPartsError: parts that are one tensor in the target differ.
            WeightMapError: `source` gave another dtype or shape than was planned with.
        """
        tensors = [source(name) for name in self.sources]
        made = self._fused(tensors) if len(tensors) > 1 else self._split(tensors[0])
        for target, tensor in zip(self.targets, made, strict=True):
            if (target.dtype, target.shape) != (tensor.dtype, tensor.shape):
                raise self._contradicted(f"{target.name} became {tensor.dtype} {tensor.shape}")
        return made

    def _contradicted(self, what: str) -> WeightMapError:
        wanted = ", ".join(f"{t.name} {t.dtype} {t.shape}" for t in self.targets)
        return WeightMapError(
            f"{self.sources[0]} is not what its header said: {what}; planned: {wanted}"
        )

    def apply(self, read: Callable[[str], RawTensor]) -> list[RawTensor]:
        """Read the sources and return the targets in memory; see `rearrange`.

        The result may share memory with what `read` returned.
        """
        return [in_memory(tensor) for tensor in self.rearrange(read)]

    def _split(self, tensor: TensorSource) -> list[TensorSource]:
        parts = len(self.targets)
        if self.op in (Op.RENAME, Op.COPY):
            return [tensor] * parts
        if self.op is Op.TRANSPOSE:
            return [from_bits(tensor.dtype, in_memory(tensor).bits().T)]
        dim = 1 if self.op is Op.COLUMNS else 0
        size = list(tensor.shape)
        if len(size) <= dim or size[dim] % parts:
            raise self._contradicted(f"it is of shape {tensor.shape}")
        size[dim] //= parts
        return taken_apart(tensor, tuple(size), parts=parts, blocks=self._blocks(tensor.shape))

    def _fused(self, tensors: Sequence[TensorSource]) -> list[TensorSource]:
        first = tensors[0]
        if self.op is Op.COPY:
            for name, tensor in zip(self.sources, tensors, strict=True):
                if not same_bytes(tensor, first):
                    raise UnequalPartsError(self.sources[0], name, what="content")
            return [first]
        dim = 1 if self.op is Op.COLUMNS else 0
        size = list(first.shape)
        size[dim] *= len(tensors)
        for name, tensor in zip(self.sources, tensors, strict=True):
            if (tensor.dtype, tensor.shape) != (first.dtype, first.shape):
                raise UnequalPartsError(self.sources[0], name, what="dtype or shape")
        return [put_together(tensors, tuple(size), blocks=self._blocks(first.shape))]

    def _blocks(self, shape: Shape) -> int:
        """How many runs of bytes of each part alternate in the fused tensor."""
        if self.op is Op.HEADS:
            return self.heads
        return shape[0] if self.op is Op.COLUMNS else 1


@dataclass(frozen=True)
class WeightMap:
    """A table of rules, usable in both directions; `rules` is in the order tensors are written."""

    rules: tuple[Rule, ...]

    @property
    def digest(self) -> str:
        """The table's sha256 over canonical JSON, for a manifest's lineage."""
        return canonical_digest([[r.source, list(r.targets), r.op.value] for r in self.rules])

    def forward(self, infos: Mapping[str, TensorInfo], *, heads: int) -> list[Move]:
        """Plan source -> targets for every tensor in `infos`, in the table's order.

        Args:
            infos: source tensors by name.
            heads: attention heads behind the `Op.HEADS` rules.

        Raises:
            UnmappedTensorError: a name that no rule has as its source.
            UnevenSplitError: a tensor that does not divide among its targets.
        """
        found: list[tuple[_Place, Move]] = []
        for name, info in infos.items():
            position, index = _find(self._by_source, name)
            rule = self.rules[position]
            shape = _part_shape(rule.op, name, info.shape, len(rule.targets), heads)
            targets = tuple(TensorSpec(t.format(index), info.dtype, shape) for t in rule.targets)
            found.append((self._place(position, index), Move(rule.op, (name,), targets, heads)))
        return _in_order(found)

    def backward(self, infos: Mapping[str, TensorInfo], *, heads: int) -> list[Move]:
        """Plan targets -> source for every tensor in `infos`: the inverse of `forward`.

        Raises:
            UnmappedTensorError: a name that no rule has among its targets.
            MissingPartError: some of a fused tensor's parts are not in `infos`.
            UnequalPartsError: parts that must agree in dtype and shape do not.
            UnevenSplitError: a part that the heads do not divide.
        """
        groups: dict[tuple[int, str], None] = {}
        for name in infos:
            groups[_find(self._by_target, name)] = None
        return _in_order(
            (self._place(position, index), _fusing(self.rules[position], index, infos, heads))
            for position, index in groups
        )

    @cached_property
    def _by_source(self) -> dict[str, int]:
        return _unique((rule.source, n) for n, rule in enumerate(self.rules))

    @cached_property
    def _by_target(self) -> dict[str, int]:
        return _unique((target, n) for n, rule in enumerate(self.rules) for target in rule.targets)

    @cached_property
    def _block_starts(self) -> list[int]:
        # neighbours whose names agree up to the layer index are written layer by layer
        starts: list[int] = []
        for n, rule in enumerate(self.rules):
            same = n > 0 and "{}" in rule.source and _stem(rule) == _stem(self.rules[n - 1])
            starts.append(starts[-1] if same else n)
        return starts

    def _place(self, position: int, index: str) -> _Place:
        return (self._block_starts[position], int(index or 0), position)


_Place = tuple[int, int, int]  # start of the rule's block in the table, layer, rule


def split_index(name: str) -> tuple[str, str]:
    """Split a tensor's name into its template and its layer index ("" when it has none).

    An index with leading zeros is left in place: it would not survive the way back.
    """
    parts = name.split(".")
    at = [n for n, part in enumerate(parts) if part.isascii() and part.isdigit()]
    if len(at) != 1 or str(int(parts[at[0]][:9])) != parts[at[0]]:
        return name, ""
    index = parts[at[0]]
    parts[at[0]] = "{}"
    return ".".join(parts), index


def moved(
    plan: Iterable[Move], read: Callable[[str], RawTensor]
) -> Iterator[tuple[str, RawTensor]]:
    """Apply moves one after the other; yields (target name, tensor), one group alive at a time."""
    for move in plan:
        for target, tensor in zip(move.targets, move.apply(read), strict=True):
            yield target.name, tensor


def planned(plan: Iterable[Move]) -> dict[str, TensorSpec]:
    """Every tensor that a plan makes, by name."""
    return {target.name: target for move in plan for target in move.targets}


def _find(table: Mapping[str, int], name: str) -> tuple[int, str]:
    template, index = split_index(name)
    position = table.get(template)
    if position is None or bool(index) != ("{}" in template):  # a tensor may be called "h.{}.x"
        raise UnmappedTensorError(name)
    return position, index


def _in_order(found: Iterable[tuple[_Place, Move]]) -> list[Move]:
    return [move for _, move in sorted(found, key=lambda item: item[0])]


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    positions: dict[str, int] = {}
    for name, position in pairs:
        if positions.setdefault(name, position) != position:
            raise WeightMapError(f"two rules name {name!r}")
    return positions


def _stem(rule: Rule) -> str:
    return rule.source.partition("{}")[0]


def _fusing(rule: Rule, index: str, infos: Mapping[str, TensorInfo], heads: int) -> Move:
    names = tuple(target.format(index) for target in rule.targets)
    for name in names:
        if name not in infos:
            raise MissingPartError(name, of=rule.source.format(index))
    first = infos[names[0]]
    for name in names[1:]:
        if (infos[name].dtype, infos[name].shape) != (first.dtype, first.shape):
            raise UnequalPartsError(names[0], name, what="dtype or shape")
    shape = _whole_shape(rule.op, names[0], first.shape, len(names), heads)
    target = TensorSpec(rule.source.format(index), first.dtype, shape)
    return Move(rule.op, names, (target,), heads)


def _part_shape(op: Op, name: str, shape: Shape, parts: int, heads: int) -> Shape:
    if op is Op.TRANSPOSE:
        return _reversed(name, shape)
    if op in (Op.RENAME, Op.COPY):
        return shape
    dim = 1 if op is Op.COLUMNS else 0
    units = parts * heads if op is Op.HEADS else parts
    if len(shape) <= dim or units < 1 or shape[dim] % units:
        raise UnevenSplitError(name, shape, dim=dim, into=units)
    return (*shape[:dim], shape[dim] // parts, *shape[dim + 1 :])


def _whole_shape(op: Op, name: str, shape: Shape, parts: int, heads: int) -> Shape:
    if op is Op.TRANSPOSE:
        return _reversed(name, shape)
    if op in (Op.RENAME, Op.COPY):
        return shape
    dim = 1 if op is Op.COLUMNS else 0
    units = heads if op is Op.HEADS else 1
    if len(shape) <= dim or units < 1 or shape[dim] % units:
        raise UnevenSplitError(name, shape, dim=dim, into=units)
    return (*shape[:dim], shape[dim] * parts, *shape[dim + 1 :])


def _reversed(name: str, shape: Shape) -> Shape:
    if len(shape) != 2:
        raise WeightMapError(f"{name} has shape {shape}: only a matrix can be transposed")
    return shape[::-1]

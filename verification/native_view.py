"""A checkpoint's tensors under native names, whichever layout it is stored in.

Nothing is copied to disk, and one planned move at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from model_store.checkpoint import open_checkpoint
from model_store.tensors import RawTensor
from model_store.weight_rules import Move, TensorInfo
from qwen_vl.weight_map import native_plan
from verification.folders import Subject


class NativeView:
    """Names, shapes and tensors of a checkpoint as the native layout has them."""

    def __init__(self, subject: Subject) -> None:
        self._checkpoint = open_checkpoint(subject.folder)
        infos = {name: self._checkpoint.info(name) for name in self._checkpoint.names()}
        self._moves: dict[str, Move] = {}
        self._last: tuple[Move, dict[str, RawTensor]] | None = None
        self.infos: Mapping[str, TensorInfo] = infos
        if subject.original:
            plan = native_plan(infos, vision_heads=subject.architecture.vision_heads)
            self._moves = {target.name: move for move in plan for target in move.targets}
            self.infos = {target.name: target for move in plan for target in move.targets}

    def read(self, name: str) -> RawTensor:
        move = self._moves.get(name)
        if move is None:
            return self._checkpoint.read(name)
        if self._last is None or self._last[0] is not move:
            tensors = move.apply(self._checkpoint.read)
            made = {t.name: tensor for t, tensor in zip(move.targets, tensors, strict=True)}
            self._last = (move, made)
        return self._last[1][name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._last = None
        self._checkpoint.close()

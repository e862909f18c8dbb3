"""The unembedding of a snapshot, a slice of rows at a time, as float32."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from model_store.tensors import from_bits
from verification.errors import NotComparableError
from verification.folders import Subject
from verification.native_view import NativeView

NAME = "lm_head.weight"
_KEPT = 1 << 28  # a head of up to this many bytes (as float32) is widened once and kept


class StoredHead:
    """`lm_head.weight` read from the checkpoint's files; no model is in memory for it.

    Raises:
        NotComparableError: the checkpoint has none.
    """

    def __init__(self, subject: Subject, device: torch.device | str = "cpu") -> None:
        self._view = NativeView(subject)
        self._device = device
        if NAME not in self._view.infos:
            self._view.__exit__(None, None, None)
            raise NotComparableError(f"{subject.side.label} has no tensor {NAME!r}")
        self._raw = self._view.read(NAME)
        rows, width = self._raw.shape
        self.vocabulary = int(rows)
        self._kept: Tensor | None = None
        if rows * width * 4 <= _KEPT:
            self._kept = self._widened(0, self.vocabulary)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start … stop - 1, (rows, hidden) float32."""
        return self._widened(start, stop) if self._kept is None else self._kept[start:stop]

    def _widened(self, start: int, stop: int) -> Tensor:
        values = from_bits(self._raw.dtype, self._raw.bits()[start:stop]).values()
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._raw
        self._view.__exit__(kind, error, trace)

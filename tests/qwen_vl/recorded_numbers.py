"""A file of recorded arrays that knows which of them were compared."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.qwen_vl import golden_weights
from tests.qwen_vl.model_goldens import HIDDEN_ATOL, LOGITS_ATOL, probes

CLOSE_CALL = 1e-3  # a first choice that wins by less may fall the other way


class RecordedNumbers:
    """The arrays of one npz; at the end, `left` says which nobody asked for."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self._arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Tensor:
        self._asked.add(key)
        return self._arrays[key]

    @property
    def left(self) -> list[str]:
        return sorted(self._arrays.keys() - self._asked)

    def agree(self, key: str, got: Tensor, atol: float, where: Tensor | None = None) -> None:
        """Compare one array, at the places (…) that `where` marks in its leading dimensions."""
        expected = self[key]
        if where is not None:
            got, expected = got[where], expected[where]
        torch.testing.assert_close(
            got.to(expected.dtype), expected, rtol=0, atol=atol, msg=lambda said: f"{key}: {said}"
        )

    def agree_on_logits(self, case: str, logits: Tensor, real: Tensor) -> None:
        """Compare what is kept of logits (rows, positions, vocabulary) where tokens are real."""
        self.agree(f"{case}/sample_logits", logits[..., probes()], LOGITS_ATOL, real)
        top = logits.topk(2).values
        margin = top[..., 0] - top[..., 1]
        self.agree(f"{case}/margin", margin, 2 * LOGITS_ATOL, real)
        clear = real & (self[f"{case}/margin"] > CLOSE_CALL)
        self.agree(f"{case}/argmax", logits.argmax(-1), 0, clear)
        self.agree(f"{case}/lse", logits.logsumexp(-1), LOGITS_ATOL, real)
        last = logits[:, -1].gather(-1, self[f"{case}/last_top_ids"].long())
        self.agree(f"{case}/last_top_vals", last, LOGITS_ATOL)

    def agree_on_states(self, case: str, states: Iterable[Tensor], real: Tensor) -> None:
        """Compare what is kept of hidden states (rows, positions, hidden), embeddings first."""
        states = list(states)
        seen = torch.from_numpy(golden_weights.projection(states[0].shape[-1]))
        projected = torch.stack([state @ seen for state in states], dim=2)
        expected = self[f"{case}/hidden_proj"].permute(1, 2, 0, 3)
        torch.testing.assert_close(projected[real], expected[real], rtol=0, atol=HIDDEN_ATOL)
        final = states[-1]
        self.agree(f"{case}/hidden_final_last", final[:, -1], HIDDEN_ATOL)
        if f"{case}/hidden_final" in self:
            self.agree(f"{case}/hidden_final", final, HIDDEN_ATOL, real)

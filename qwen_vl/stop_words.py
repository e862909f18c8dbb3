"""Where an answer ends: stop sequences, and the two ways to obey them while generating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from qwen_vl.errors import StopWordsError, UnknownChatFormatError
from qwen_vl.image_text_tokenizer import ImageTextTokenizer

StopSequences = list[list[int]]


def stop_sequences(chat_format: str, tokenizer: ImageTextTokenizer) -> StopSequences:
    """The sequences that end an answer in a chat format.

    Raises:
        UnknownChatFormatError: it is neither "chatml" nor "raw".
    """
    if chat_format == "chatml":
        return [[tokenizer.im_end_id], [tokenizer.im_start_id]]
    if chat_format == "raw":
        return [tokenizer.encode("Human:"), [tokenizer.eod_id]]
    raise UnknownChatFormatError(f"Unknown chat format {chat_format!r}")


def check_stop_sequences(sequences: Any) -> None:
    """Refuse what cannot stop anything.

    Raises:
        StopWordsError: there is no sequence, or one is empty or holds what is no id.
    """
    if not isinstance(sequences, list | tuple) or not sequences:
        raise StopWordsError(f"there are no stop sequences: {sequences!r}")
    for sequence in sequences:
        ids = sequence if isinstance(sequence, list | tuple) else ()
        if not ids or any(not isinstance(i, int) or i < 0 for i in ids):
            raise StopWordsError(f"not a stop sequence: {sequence!r}")


class ForceEndAfterStop(LogitsProcessor):
    """As in 2023: once a row ends with a stop sequence, make end-of-text win.

    The prompt is looked at too, and the stop costs one more forward pass. Sequences that equal
    [eos] are dropped, because generation ends there anyway.
    """

    _WINS = float(2**15)  # fits float16

    def __init__(self, sequences: Sequence[Sequence[int]], eos_token_id: int) -> None:
        check_stop_sequences(sequences)
        self.eos_token_id = eos_token_id
        self.sequences = [list(s) for s in sequences if list(s) != [eos_token_id]]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary), changed in place for the rows that have stopped."""
        for row, ids in enumerate(input_ids.tolist()):
            if any(_ends_with(ids, stop) for stop in self.sequences):
                scores[row, self.eos_token_id] = self._WINS
        return scores


class StopAfter(StoppingCriteria):
    """Stop a row as soon as what it generated, and not its prompt, ends with a stop sequence."""

    def __init__(self, sequences: Sequence[Sequence[int]], prompt_length: int) -> None:
        check_stop_sequences(sequences)
        self.sequences = [list(s) for s in sequences]
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """One bool per row."""
        new = input_ids[:, self.prompt_length :].tolist()
        done = [any(_ends_with(ids, stop) for stop in self.sequences) for ids in new]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def _ends_with(ids: list[int], stop: list[int]) -> bool:
    return ids[-len(stop) :] == stop


def before_stop(ids: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[int]:
    """The ids before the first stop sequence."""
    for start in range(len(ids)):
        if any(list(ids[start : start + len(stop)]) == list(stop) for stop in sequences):
            return list(ids[:start])
    return list(ids)

"""Answers piece by piece: `generate` runs in a thread, and its ids become the text so far."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from qwen_vl.context import Query, Turn
from qwen_vl.dialogue import DEFAULT_SYSTEM, ChatModel, ask
from qwen_vl.image_text_tokenizer import ImageTextTokenizer


def chat_stream(
    model: ChatModel,
    tokenizer: ImageTextTokenizer,
    query: Query,
    *,
    history: Sequence[Turn] | None = None,
    system: str = DEFAULT_SYSTEM,
    **generation: Any,
) -> Iterator[str]:
    """Ask one question and yield the answer so far, each time it grew; history is not changed.

    The last text is what `chat` returns. With `compat="2023"` there is one yield per token, the
    stop token and end-of-text included, so that the end repeats; tags are left out unless the
    tokenizer's style is r2. Whoever stops reading stops the model.

    Args:
        model: as for `chat`.
        tokenizer: the model's.
        query: as for `chat`.
        history: as for `chat`.
        system: as for `chat`.
        generation: as for `chat`.

    Raises:
        ChatFormatError: the model is no chat model.
        ImageError: an image is not allowed, or cannot be opened.
    """
    asked = ask(model, tokenizer, query, history=history, system=system, given=generation)
    arguments = asked.arguments(model.device)
    if asked.as_2023:
        return _texts_2023(tokenizer, _new_ids(model, arguments))

    def ended(ids: Sequence[int]) -> list[int]:
        return asked.answer_ids(ids, tokenizer.eod_id)

    longest = max(len(stop) for stop in asked.stops)
    return _texts(tokenizer, _new_ids(model, arguments), ended, hold=longest - 1)


def _texts_2023(tokenizer: ImageTextTokenizer, new_ids: Iterator[int]) -> Iterator[str]:
    ids: list[int] = []
    for token_id in new_ids:
        ids.append(token_id)
        yield tokenizer.decode(
            ids, skip_special_tokens=True, errors="ignore", keep_image_special=True
        )


def _texts(
    tokenizer: ImageTextTokenizer, new_ids: Iterator[int], ended: Any, *, hold: int
) -> Iterator[str]:
    """`hold` ids wait, because they may be the start of a stop sequence."""
    ids: list[int] = []
    shown = ""
    for token_id in new_ids:
        ids.append(token_id)
        kept = ended(ids)
        kept = kept if len(kept) < len(ids) else kept[: len(kept) - hold]
        # a character of which bytes are missing shows as U+FFFD at the end: wait for the rest
        text = tokenizer.decode(kept, literal=True).rstrip("\ufffd").strip()
        if len(text) > len(shown):
            shown = text
            yield text
    text = tokenizer.decode(ended(ids), literal=True).strip()
    if text != shown:
        yield text


@dataclass(frozen=True, slots=True)
class _Failed:
    error: BaseException


_DONE = object()


class _QueueStreamer(BaseStreamer):
    """Hands ids over to another thread; the prompt, which comes first, is left out."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            for token_id in value.reshape(-1).tolist():
                self.items.put(token_id)
        self._prompt_seen = True

    def end(self) -> None:
        pass  # the thread says so itself, after errors too


class _Abandoned(StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stop = self.event.is_set()
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)


def _new_ids(model: ChatModel, arguments: dict[str, Any]) -> Iterator[int]:
    """What `generate` appends, id by id, from a thread that ends with this iterator."""
    streamer, abandoned = _QueueStreamer(), _Abandoned()
    criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
    criteria.append(abandoned)

    def work() -> None:
        try:
            model.generate(**arguments, stopping_criteria=criteria, streamer=streamer)
        except BaseException as error:  # noqa: BLE001  # raised again in the reader's thread
            streamer.items.put(_Failed(error))
        streamer.items.put(_DONE)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := streamer.items.get()) is not _DONE:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        abandoned.event.set()
        thread.join()

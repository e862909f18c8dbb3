"""What the model class of 2023 could do by itself: chat, chat_stream, and its `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

# the modelling file is also shipped alone, so nothing heavy is imported before it is used
if TYPE_CHECKING:
    from qwen_vl.context import Query, Turn
    from qwen_vl.image_text_tokenizer import ImageTextTokenizer

_SYSTEM = "You are a helpful assistant."


class ConversingModel:
    """Methods over `dialogue` and `streaming`, with the arguments in the order of 2023."""

    def chat(
        self,
        tokenizer: ImageTextTokenizer,
        query: Query,
        history: list[Turn] | None = None,
        system: str = _SYSTEM,
        **generation: Any,
    ) -> tuple[str, list[Turn]]:
        """Ask one question; see `dialogue.chat`."""
        from qwen_vl.dialogue import chat

        return chat(self, tokenizer, query, history=history, system=system, **generation)  # type: ignore[arg-type]  # the class that mixes this in is a ChatModel

    def chat_stream(
        self,
        tokenizer: ImageTextTokenizer,
        query: Query,
        history: list[Turn] | None = None,
        system: str = _SYSTEM,
        **generation: Any,
    ) -> Iterator[str]:
        """Ask one question and yield the answer so far; see `streaming.chat_stream`."""
        from qwen_vl.streaming import chat_stream

        return chat_stream(self, tokenizer, query, history=history, system=system, **generation)  # type: ignore[arg-type]  # as above

    def generate(
        self,
        *args: Any,
        token_type_ids: Any = None,
        stop_words_ids: list[list[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as every transformers model.

        Args:
            args: passed on.
            token_type_ids: what the tokenizer makes beside the ids; ignored.
            stop_words_ids: sequences of ids that end a row, and stay in it.
            kwargs: passed on.

        Raises:
            StopWordsError: stop sequences that stop nothing.
        """
        if stop_words_ids is not None:
            self._obey(stop_words_ids, args, kwargs)
        return super().generate(*args, **kwargs)  # type: ignore[misc]  # GenerationMixin's

    def _obey(self, stops: list[list[int]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        from qwen_vl.stop_words import ForceEndAfterStop, StopAfter

        if getattr(self, "compat", "default") == "2023":
            config = kwargs.get("generation_config") or self.generation_config  # type: ignore[attr-defined]  # as above
            eos = kwargs.get("eos_token_id", config.eos_token_id)
            end = eos[0] if isinstance(eos, list) else eos
            processors = LogitsProcessorList(kwargs.get("logits_processor") or [])
            processors.append(ForceEndAfterStop(stops, end))
            kwargs["logits_processor"] = processors
            return
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        criteria = StoppingCriteriaList(kwargs.get("stopping_criteria") or [])
        criteria.append(StopAfter(stops, 0 if ids is None else ids.shape[1]))
        kwargs["stopping_criteria"] = criteria

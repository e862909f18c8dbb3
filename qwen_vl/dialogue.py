"""Talk to a Qwen-VL-Chat model: build the prompt, load its images, generate, read the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from qwen_vl.context import (
    Layout,
    Query,
    Turn,
    as_text,
    encode_content,
    encode_guarded,
    encode_with_paths,
)
from qwen_vl.errors import ChatFormatError, UnknownChatFormatError
from qwen_vl.image_sources import open_image
from qwen_vl.ranks import END_OF_TEXT
from qwen_vl.stop_words import ForceEndAfterStop, StopAfter, before_stop, stop_sequences
from qwen_vl.tokenization import QwenVLTokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
DEFAULT_WINDOW = 6144


class ChatModel(Protocol):
    """What `chat` needs of a model; `compat` may be absent."""

    @property
    def config(self) -> Any: ...
    @property
    def generation_config(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def generate(self) -> Callable[..., Any]: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and why it ended, in the words of 2023."""

    text: str
    end_reason: str


@dataclass(frozen=True, slots=True)
class ChatInputs:
    """A prompt whose images are open: everything the model needs for one answer."""

    raw_text: str
    input_ids: list[int]
    images: tuple[Image.Image, ...]
    image_size: int

    def model_inputs(self, device: Any = "cpu") -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` (1, S); with images `pixel_values` (n, 3, side, side)."""
        ids = torch.tensor([self.input_ids], dtype=torch.int64, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.images:
            from qwen_vl.image_processing import preprocess  # torch-heavy, and text needs none

            inputs["pixel_values"] = preprocess(self.images, self.image_size).to(device)
        return inputs


def make_context(
    tokenizer: QwenVLTokenizer,
    query: Query,
    *,
    history: Sequence[Turn] | None = None,
    system: str = "",
    max_window_size: int = DEFAULT_WINDOW,
    chat_format: str = "chatml",
) -> tuple[str, list[int]]:
    """The prompt as text and ids, exactly as the code of 2023 made them.

    In "chatml", control tokens that stand in the arguments stay plain text. "raw" takes the query
    alone, and there they count.

    Raises:
        MalformedTextError: an image span is unclosed, too long or holds a token.
        UnknownChatFormatError: the chat format is neither "chatml" nor "raw".
    """
    if chat_format == "chatml":
        layout = Layout(tokenizer, encode_content, max_window_size)
        prompt = layout.prompt(query, history or [], system)
        return prompt.text, list(prompt.ids)
    if chat_format == "raw":
        text = as_text(tokenizer, query)
        return str(text), tokenizer.encode(text)
    raise UnknownChatFormatError(f"Unknown chat format {chat_format!r}")


def chat_inputs(
    tokenizer: QwenVLTokenizer,
    query: Query,
    *,
    image_size: int,
    history: Sequence[Turn] | None = None,
    system: str = DEFAULT_SYSTEM,
    max_window_size: int = DEFAULT_WINDOW,
    allow_paths: bool = False,
) -> ChatInputs:
    """The prompt, with the images of the turns that fit the window opened.

    Args:
        tokenizer: the model's.
        query: text, the result of `from_list_format`, or a list of elements; so in history.
        image_size: side in pixels of the squares the model takes.
        history: (query, response) pairs, oldest first.
        system: the system text.
        max_window_size: bounds system text and history; the oldest turns go first.
        allow_paths: open every path that the text itself names, as in 2023. Never set it for
            text that somebody else typed.

    Raises:
        ImageNotAllowedError: a text names an image that nobody handed over.
        ImageError: an image cannot be opened.
    """
    encoder = encode_with_paths if allow_paths else encode_guarded
    layout = Layout(tokenizer, encoder, max_window_size)
    prompt = layout.prompt(query, history or [], system)
    images = tuple(open_image(source.image) for source in prompt.images)
    return ChatInputs(prompt.text, list(prompt.ids), images, image_size)


def decode_tokens(
    tokenizer: QwenVLTokenizer,
    ids: Sequence[int],
    *,
    raw_text_len: int,
    context_length: int,
    chat_format: str = "chatml",
    errors: str = "replace",
) -> Reply:
    """Cut the answer out of prompt and answer as in 2023, with the two faults that had.

    The prompt is cut off by characters of its un-normalised text, so a prompt in NFD eats the
    answer's first letters; and without a control token the last id is dropped, whatever it is.

    Raises:
        MalformedTextError: the answer holds a broken image span.
        UnknownChatFormatError: the chat format is neither "chatml" nor "raw".
    """
    if chat_format == "raw":
        text = tokenizer.decode(ids, errors=errors)[raw_text_len:]
        return Reply(text.replace(END_OF_TEXT, "").strip(), f"Gen length {len(ids)}")
    if chat_format != "chatml":
        raise UnknownChatFormatError(f"Unknown chat format {chat_format!r}")
    controls = (tokenizer.im_start_id, tokenizer.im_end_id)
    ends = (at for at in range(context_length, len(ids)) if ids[at] in controls)
    end = next(ends, None)
    reason = f"Gen length {len(ids)}"
    if end is not None:
        reason = f"Gen {tokenizer.decode([ids[end]])!r}"
    kept = ids[: max(len(ids) - 1, context_length) if end is None else end]
    return Reply(tokenizer.decode(kept, errors=errors)[raw_text_len:].strip(), reason)


@dataclass(frozen=True, slots=True)
class _ChatOptions:
    """The keywords of `chat` that are not `generate`'s, and the rest."""

    append_history: bool
    max_window_size: int
    stop_words_ids: list[list[int]] | None
    eos_ids: tuple[int, ...]
    generation: dict[str, Any]

    @classmethod
    def of(cls, model: ChatModel, tokenizer: QwenVLTokenizer, given: Mapping[str, Any]) -> Self:
        generation = dict(given)
        if generation.pop("stream", None) is not None:
            raise ChatFormatError("chat() does not stream", hint="Leave `stream` out.")
        config = generation.get("generation_config") or model.generation_config
        chat_format = getattr(config, "chat_format", "chatml")
        if chat_format != "chatml":
            raise ChatFormatError(f"chat() needs a chatml model, this one is {chat_format!r}")
        window = generation.pop("max_window_size", None)
        if window is None:
            window = getattr(config, "max_window_size", None) or DEFAULT_WINDOW
        eos = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
        eos_ids = eos if isinstance(eos, list) else [tokenizer.eod_id if eos is None else eos]
        return cls(
            append_history=generation.pop("append_history", True),
            max_window_size=window,
            stop_words_ids=generation.pop("stop_words_ids", None),
            eos_ids=tuple(eos_ids),
            generation=generation,
        )


def chat(
    model: ChatModel,
    tokenizer: QwenVLTokenizer,
    query: Query,
    *,
    history: list[Turn] | None = None,
    system: str = DEFAULT_SYSTEM,
    **generation: Any,
) -> tuple[str, list[Turn]]:
    """Ask one question and return the answer and the history with it.

    A model loaded with `compat="2023"` behaves as its code of 2023 did: paths in the text are
    opened, `history` and `stop_words_ids` grow in place, and the answer is cut out as
    `decode_tokens` says. Otherwise `history` is copied, only generated ids are decoded, and
    nothing but a stop sequence or end-of-text is dropped.

    Args:
        model: with `config.vision_config.image_size`, `generation_config` and `generate`.
        tokenizer: the model's.
        query: text, the result of `from_list_format`, or a list of elements.
        history: what an earlier call returned.
        system: the system text.
        generation: `append_history`, `max_window_size`, `stop_words_ids` (lists of ids), and
            everything that `model.generate` takes.

    Raises:
        ChatFormatError: the model is no chat model.
        ImageError: an image is not allowed, or cannot be opened.
    """
    options = _ChatOptions.of(model, tokenizer, generation)
    as_2023 = getattr(model, "compat", "default") == "2023"
    text = as_text(tokenizer, query)
    inputs = chat_inputs(
        tokenizer,
        text,
        image_size=model.config.vision_config.image_size,
        history=history,
        system=system,
        max_window_size=options.max_window_size,
        allow_paths=as_2023,
    )
    answer = (_answer_2023 if as_2023 else _answer)(model, tokenizer, inputs, options)
    if not as_2023 or history is None:
        history = list(history or [])
    if options.append_history:
        history.append((text, answer))
    return answer, history


def _answer(
    model: ChatModel, tokenizer: QwenVLTokenizer, inputs: ChatInputs, options: _ChatOptions
) -> str:
    stops = [*(options.stop_words_ids or []), *stop_sequences("chatml", tokenizer)]
    criteria = StoppingCriteriaList(options.generation.pop("stopping_criteria", None) or [])
    criteria.append(StopAfter(stops, len(inputs.input_ids)))
    ids = _generate(model, inputs, options, stopping_criteria=criteria)
    ends = [*stops, *([i] for i in options.eos_ids), [tokenizer.eod_id]]
    new = before_stop(ids[len(inputs.input_ids) :], ends)
    return tokenizer.decode(new, literal=True).strip()


def _answer_2023(
    model: ChatModel, tokenizer: QwenVLTokenizer, inputs: ChatInputs, options: _ChatOptions
) -> str:
    stops = options.stop_words_ids if options.stop_words_ids is not None else []
    stops.extend(stop_sequences("chatml", tokenizer))  # the caller's own list
    processors = LogitsProcessorList(options.generation.pop("logits_processor", None) or [])
    processors.append(ForceEndAfterStop(stops, options.eos_ids[0]))
    ids = _generate(model, inputs, options, logits_processor=processors)
    raw_text_len, context_length = len(inputs.raw_text), len(inputs.input_ids)
    return decode_tokens(
        tokenizer, ids, raw_text_len=raw_text_len, context_length=context_length
    ).text


def _generate(
    model: ChatModel, inputs: ChatInputs, options: _ChatOptions, **more: Any
) -> list[int]:
    out = model.generate(**inputs.model_inputs(model.device), **options.generation, **more)
    return cast("list[int]", getattr(out, "sequences", out)[0].tolist())

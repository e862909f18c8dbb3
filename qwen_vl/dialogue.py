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
    images_in,
)
from qwen_vl.errors import ChatFormatError, UnknownChatFormatError
from qwen_vl.image_fetching import HttpRules
from qwen_vl.image_sources import ImageText, open_image
from qwen_vl.image_text_tokenizer import ImageTextTokenizer
from qwen_vl.ranks import END_OF_TEXT
from qwen_vl.stop_words import ForceEndAfterStop, StopAfter, before_stop, stop_sequences

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
    tokenizer: ImageTextTokenizer,
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
    tokenizer: ImageTextTokenizer,
    query: Query,
    *,
    image_size: int,
    history: Sequence[Turn] | None = None,
    system: str = DEFAULT_SYSTEM,
    max_window_size: int = DEFAULT_WINDOW,
    allow_paths: bool = False,
    http: HttpRules | None = None,
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
        http: under which rules an address is fetched; None: not at all.

    Raises:
        ImageNotAllowedError: a text names an image that nobody handed over.
        ImageError: an image cannot be opened.
    """
    encoder = encode_with_paths if allow_paths else encode_guarded
    layout = Layout(tokenizer, encoder, max_window_size)
    prompt = layout.prompt(query, history or [], system)
    images = tuple(open_image(source.image, http=http) for source in prompt.images)
    return ChatInputs(prompt.text, list(prompt.ids), images, image_size)


def decode_tokens(
    tokenizer: ImageTextTokenizer,
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
class ChatOptions:
    """The keywords of `chat` that are not `generate`'s, and the rest."""

    append_history: bool
    max_window_size: int
    stop_words_ids: list[list[int]] | None
    eos_ids: tuple[int, ...]
    http: HttpRules | None
    generation: dict[str, Any]

    @classmethod
    def of(cls, model: ChatModel, tokenizer: ImageTextTokenizer, given: Mapping[str, Any]) -> Self:
        """Sort out what the caller gave.

        Raises:
            ChatFormatError: the model is no chat model, or `stream` was given.
        """
        generation = dict(given)
        if generation.pop("stream", None) is not None:
            raise ChatFormatError("chat() does not stream", hint="Use chat_stream().")
        config = generation.get("generation_config") or model.generation_config
        chat_format = getattr(config, "chat_format", "chatml")
        if chat_format != "chatml":
            raise ChatFormatError(f"chat() needs a chatml model, this one is {chat_format!r}")
        window = generation.pop("max_window_size", None)
        if window is None:
            window = getattr(config, "max_window_size", None) or DEFAULT_WINDOW
        eos = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
        eos_ids = eos if isinstance(eos, list) else [tokenizer.eod_id if eos is None else eos]
        allow_http = generation.pop("allow_http", None)
        return cls(
            append_history=generation.pop("append_history", True),
            max_window_size=window,
            stop_words_ids=generation.pop("stop_words_ids", None),
            eos_ids=tuple(eos_ids),
            http=HttpRules() if allow_http is True else allow_http or None,
            generation=generation,
        )


@dataclass(frozen=True, slots=True)
class Question:
    """One question, ready to be generated on: the prompt, its images, and where answers stop."""

    text: str
    inputs: ChatInputs
    options: ChatOptions
    stops: list[list[int]]
    as_2023: bool

    def arguments(self, device: Any) -> dict[str, Any]:
        """What `generate` takes, stop sequences included."""
        given = dict(self.options.generation)
        if self.as_2023:
            processors = LogitsProcessorList(given.pop("logits_processor", None) or [])
            processors.append(ForceEndAfterStop(self.stops, self.options.eos_ids[0]))
            given["logits_processor"] = processors
        else:
            criteria = StoppingCriteriaList(given.pop("stopping_criteria", None) or [])
            criteria.append(StopAfter(self.stops, len(self.inputs.input_ids)))
            given["stopping_criteria"] = criteria
        return self.inputs.model_inputs(device) | given

    def answer_ids(self, new: Sequence[int], end_of_text: int) -> list[int]:
        """The generated ids before the first stop sequence or end-of-text."""
        ends = [*self.stops, *([i] for i in self.options.eos_ids), [end_of_text]]
        return before_stop(new, ends)


def ask(
    model: ChatModel,
    tokenizer: ImageTextTokenizer,
    query: Query,
    *,
    history: Sequence[Turn] | None,
    system: str,
    given: Mapping[str, Any],
) -> Question:
    """Prepare what `chat` and `chat_stream` generate on; the arguments are those of `chat`.

    Raises:
        ChatFormatError: the model is no chat model.
        ImageError: an image is not allowed, or cannot be opened.
    """
    options = ChatOptions.of(model, tokenizer, given)
    as_2023 = getattr(model, "compat", "default") == "2023"
    text = as_text(tokenizer, query)
    if as_2023:
        # its pictures are opened anyway, and drawing on them later needs to know that
        text = ImageText(text, images_in(text))
    inputs = chat_inputs(
        tokenizer,
        text,
        image_size=model.config.vision_config.image_size,
        history=history,
        system=system,
        max_window_size=options.max_window_size,
        allow_paths=as_2023,
        http=options.http,
    )
    own = options.stop_words_ids
    stops = own if as_2023 and own is not None else list(own or [])
    stops.extend(stop_sequences("chatml", tokenizer))  # in 2023 the caller's own list grew
    return Question(text, inputs, options, stops, as_2023)


def chat(
    model: ChatModel,
    tokenizer: ImageTextTokenizer,
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
        generation: `append_history`, `max_window_size`, `stop_words_ids` (lists of ids),
            `allow_http` (True, or HttpRules: fetch images by address), and everything that
            `model.generate` takes.

    Raises:
        ChatFormatError: the model is no chat model.
        ImageError: an image is not allowed, or cannot be opened.
    """
    asked = ask(model, tokenizer, query, history=history, system=system, given=generation)
    out = model.generate(**asked.arguments(model.device))
    ids = cast("list[int]", getattr(out, "sequences", out)[0].tolist())
    prompt = len(asked.inputs.input_ids)
    if asked.as_2023:
        length = len(asked.inputs.raw_text)
        answer = decode_tokens(tokenizer, ids, raw_text_len=length, context_length=prompt).text
    else:
        new = asked.answer_ids(ids[prompt:], tokenizer.eod_id)
        answer = tokenizer.decode(new, literal=True).strip()
    if not asked.as_2023 or history is None:
        history = list(history or [])
    if asked.options.append_history:
        history.append((asked.text, answer))
    return answer, history

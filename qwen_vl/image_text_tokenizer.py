"""What both tokenizers of Qwen-VL share: image spans, the list format, pictures, and decoding.

Text names an image as `<img>path</img>`; only a picture that the caller handed over is opened.
"""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from PIL import Image
from transformers import AddedToken
from transformers.tokenization_utils_base import BatchEncoding, PreTrainedTokenizerBase

from qwen_vl.boxes import Turn, draw_boxes, latest_source, parse_boxes
from qwen_vl.errors import (
    FixedVocabularyError,
    ImageNotAllowedError,
    MalformedTextError,
    QwenVLError,
)
from qwen_vl.image_settings import image_settings
from qwen_vl.image_sources import ImageInput, ImageSource, ImageText, open_image
from qwen_vl.image_spans import SpanLayout, encode_spans, find_spans, span_path
from qwen_vl.list_format import Style, TextElement, from_list_format, to_list_format
from qwen_vl.ranks import (
    ANY_SPECIAL,
    END_OF_TEXT,
    GROUNDING_TAGS,
    IM_END,
    IM_START,
    IMAGE_TAGS,
    IMG_END,
    IMG_PAD,
    IMG_START,
    SPECIAL_TOKENS,
    special_ids,
)

Token = bytes | str
AllowedSpecial = Literal["all"] | Collection[str]
_REMEMBERED = 32  # pictures of earlier calls, for drawing on them


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How a tokenizer writes and reads images.

    Attributes:
        style: helper revision of 2023; r1 writes `Picture 1:<img>` and knows no
            `keep_image_special`, r2 has both.
        n_image_tokens: ids between `<img>` and `</img>`, the model's number of queries.
        image_size: side in pixels of the squares the model takes.
        errors: how `decode` treats bytes that are not UTF-8, as in `bytes.decode`.

    Raises:
        QwenVLError: a style that does not exist.
    """

    style: Style = "r2"
    n_image_tokens: int = 256
    image_size: int = 448
    errors: str = "replace"

    def __post_init__(self) -> None:
        if self.style not in ("r1", "r2"):
            raise QwenVLError(f"unknown style {self.style!r}", hint="Use r1 or r2.")


class ImageTextTokenizer(PreTrainedTokenizerBase):
    """The common half of QwenVLTokenizer and QwenVLTokenizerFast; each brings its own BPE."""

    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012  # the base class's protocol
    IMAGE_ST = IMAGE_TAGS  # the name that code of 2023 looks for

    style: Style
    n_ranks: int
    n_image_tokens: int
    image_size: int
    errors: str
    model_dir: str

    def _set_up(self, n_ranks: int, settings: TextSettings) -> None:
        """Call before the base class's own __init__, which encodes already."""
        self.style = settings.style
        self.n_image_tokens = settings.n_image_tokens
        self.image_size = settings.image_size
        self.errors = settings.errors
        self.n_ranks = n_ranks
        self.special_ids = special_ids(n_ranks)
        self.eod_id = self.special_ids[END_OF_TEXT]
        self.im_start_id = self.special_ids[IM_START]
        self.im_end_id = self.special_ids[IM_END]
        self.spans = SpanLayout(
            self.special_ids[IMG_START],
            self.special_ids[IMG_END],
            self.special_ids[IMG_PAD],
            settings.n_image_tokens,
        )
        self._grounding_ids = frozenset(self.special_ids[tag] for tag in GROUNDING_TAGS)
        self._handed_over: OrderedDict[str, ImageInput] = OrderedDict()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the same call, said shorter
        cls, folder: Any, *args: Any, **kwargs: Any
    ) -> Self:
        """Load from a folder of either layout, or a repo id, as every transformers tokenizer.

        The flags of 2023 (`trust_remote_code`) are accepted; no code of the folder runs.

        Raises:
            ConfigError: a config.json whose image settings contradict themselves.
        """
        kwargs.pop("trust_remote_code", None)
        for key, value in image_settings(Path(folder)).items():
            kwargs.setdefault(key, value)
        made = super().from_pretrained(folder, *args, **kwargs)
        made.model_dir = str(folder)
        return cast("Self", made)

    @property
    def vocab_size(self) -> int:
        return self.n_ranks + len(SPECIAL_TOKENS)

    def __len__(self) -> int:
        return self.vocab_size

    # ---- what the two halves bring

    def _bpe_ids(self, text: str, allowed: AllowedSpecial) -> list[int]:
        """Ids of a text in NFC, with the allowed special tokens recognised."""
        raise NotImplementedError

    def _token(self, token_id: int) -> Token:
        """A token: bytes, or str for a special one. Raises UnknownTokenError."""
        raise NotImplementedError

    # ---- text to ids

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Text to ids, as any transformers tokenizer; see `encode` for `allowed_special`.

        A text from `from_list_format` brings its pictures along, as `pixel_values`
        (images, 3, image_size, image_size).

        Raises:
            MalformedTextError: an `<img>` is unclosed, its path too long or holding a token.
            ImageError: a picture cannot be opened.
        """
        encoded = super().__call__(text, *args, **kwargs)
        texts = text if isinstance(text, list | tuple) else [text]
        sources = [source for one in texts for source in getattr(one, "images", ())]
        if sources:
            from qwen_vl.image_processing import preprocess  # torch-heavy, and text needs none

            pixels = preprocess((open_image(source.image) for source in sources), self.image_size)
            as_arrays = kwargs.get("return_tensors") in ("np", "numpy")
            encoded["pixel_values"] = pixels.numpy() if as_arrays else pixels
            self._remember(sources)
        return cast("BatchEncoding", encoded)

    def _remember(self, sources: Iterable[ImageSource]) -> None:
        """So that an answer decoded later can be drawn on the picture it names."""
        for source in sources:
            name = unicodedata.normalize("NFC", source.name)
            self._handed_over[name] = source.image
            self._handed_over.move_to_end(name)
        while len(self._handed_over) > _REMEMBERED:
            self._handed_over.popitem(last=False)

    def encode(
        self, text: Any, *args: Any, allowed_special: AllowedSpecial = "all", **kwargs: Any
    ) -> list[int]:
        """Text to ids; every image becomes one span of fixed length.

        Args:
            text: normalised to NFC first.
            args: as for any transformers tokenizer.
            allowed_special: special tokens that are recognised in the text; others stay text.
            kwargs: as for any transformers tokenizer.

        Raises:
            MalformedTextError: an `<img>` is unclosed, its path too long or holding a token.
        """
        if isinstance(text, str) and not args and not kwargs:
            return self._text_ids(text, allowed_special)
        ids = super().encode(text, *args, allowed_special=allowed_special, **kwargs)
        return cast("list[int]", ids)

    def _text_ids(self, text: str, allowed_special: AllowedSpecial) -> list[int]:
        allowed = "all" if allowed_special == "all" else frozenset(allowed_special)
        ids = self._bpe_ids(unicodedata.normalize("NFC", text), cast("AllowedSpecial", allowed))
        return encode_spans(ids, self.spans, self._token)

    def apply_chat_template(  # type: ignore[override]  # fewer ways to be asked
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        padding: Any = False,
        **_: Any,
    ) -> Any:
        """Lay messages out as prompts; see `chat_template.render`. Tools are not known.

        Raises:
            ConversationError: see `render`.
        """
        from qwen_vl.chat_template import is_batch, refuse_other_template, render

        refuse_other_template(chat_template)
        batch = is_batch(conversation)
        prompts = [
            render(
                self,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for messages in (conversation if batch else [conversation])
        ]
        if not tokenize:
            return prompts if batch else prompts[0]
        made = self.pad({"input_ids": [list(prompt.ids) for prompt in prompts]}, padding=padding)
        if return_tensors is not None:
            made = BatchEncoding(dict(made), tensor_type=return_tensors)
        elif not batch:
            made = BatchEncoding({key: value[0] for key, value in made.items()})
        return made if return_dict else made["input_ids"]

    # ---- ids to text

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        *,
        errors: str | None = None,
        keep_image_special: bool = False,
        literal: bool = False,
        **kwargs: Any,
    ) -> str:
        """Ids to text; image spans become `<img>path</img>`.

        Args:
            token_ids: one sequence of ids, or an id. A batch gives a list of texts.
            skip_special_tokens: leave tags and control tokens out; paths of images stay.
            errors: overrides the tokenizer's `errors`.
            keep_image_special: style r2 only: keep ref, box and quad tags nevertheless.
            literal: never raise: a broken span is shown token by token, an id beyond the
                vocabulary as U+FFFD. For what a model wrote by itself.
            kwargs: ignored, as `clean_up_tokenization_spaces` is.

        Raises:
            MalformedTextError: an image span is unclosed or spells no path.
            UnknownTokenError: an id has no token.
            UnicodeDecodeError: only with errors="strict".
        """
        text = super().decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            errors=errors or self.errors,
            keep_image_special=keep_image_special,
            literal=literal,
            **kwargs,
        )
        return cast("str", text)

    def _decode(  # type: ignore[override]  # the base's hook takes what decode passes
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        *,
        errors: str = "replace",
        keep_image_special: bool = False,
        literal: bool = False,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        kept = self._grounding_ids if keep_image_special and self.style == "r2" else frozenset()
        out = bytearray()
        for part in self._parts(ids, literal):
            if isinstance(part, str):
                out += part.encode()
                continue
            for i in part:
                if not skip_special_tokens or i < self.n_ranks or i in kept:
                    out += self._token_bytes(i, literal)
        return out.decode("utf-8", errors=errors)

    def _parts(self, ids: list[int], literal: bool) -> Iterator[list[int] | str]:
        """Runs of ids, and the path of each image between its two tags."""
        position = 0
        try:
            for span in find_spans(ids, self.spans):
                path = self._path(ids[span.start + 1 : span.stop - 1], literal)
                if path is not None:
                    yield ids[position : span.start + 1]
                    yield path
                    position = span.stop - 1
        except MalformedTextError:
            if not literal:
                raise
        yield ids[position:]

    def _path(self, inner: list[int], literal: bool) -> str | None:
        try:
            path = span_path(inner, self.spans)
            special = ANY_SPECIAL.search(path)
            if special:
                raise MalformedTextError(f"an image path holds the token {special.group()}")
        except MalformedTextError:
            if not literal:
                raise
            return None
        return path

    def _token_bytes(self, token_id: int, literal: bool) -> bytes:
        if literal and not 0 <= token_id < self.vocab_size:
            return "\ufffd".encode()
        token = self._token(token_id)
        return token if isinstance(token, bytes) else token.encode()

    # ---- lists of elements

    def from_list_format(self, elements: Iterable[Mapping[str, Any]]) -> ImageText:
        """Write elements as one text; see `list_format.from_list_format`."""
        # one place stays free: a span without padding cannot be decoded
        return from_list_format(elements, style=self.style, name_limit=self.n_image_tokens - 1)

    def to_list_format(self, text: str) -> list[TextElement]:
        """Split a tagged text into elements; see `list_format.to_list_format`."""
        return to_list_format(text)

    def draw_bbox_on_latest_picture(
        self, response: str, history: Sequence[Turn] | None = None
    ) -> Image.Image | None:
        """Draw a response's boxes on the picture it speaks of; None without boxes or picture.

        The picture is the response's last, else that of the newest query with one. It must have
        been handed over: to `chat`, or to the call that made the ids of the response.

        Raises:
            ImageNotAllowedError: the picture is only a path in somebody's text.
            MalformedBoxError: a box is not four integers.
        """
        picture, boxes = latest_source(response, history), parse_boxes(response)
        if picture is None or not boxes:
            return None
        if isinstance(picture, str):
            if picture not in self._handed_over:
                raise ImageNotAllowedError(f"the picture is only named in the text: {picture!r}")
            return draw_boxes(open_image(self._handed_over[picture]), boxes)
        return draw_boxes(open_image(picture.image), boxes)

    # ---- the fixed vocabulary

    def _add_tokens(
        self, new_tokens: Iterable[str | AddedToken], special_tokens: bool = False
    ) -> int:
        names = [str(token) for token in new_tokens]
        if names and not special_tokens:
            raise FixedVocabularyError("Adding regular tokens is not supported")
        unknown = [name for name in names if name not in self.special_ids]
        if unknown:
            raise FixedVocabularyError(
                f"Adding unknown special tokens is not supported: {', '.join(unknown)}"
            )
        return 0

"""QwenVLTokenizer: the tiktoken vocabulary of Qwen-VL as a transformers tokenizer.

Ordinary tokens are `bytes`, special ones `str`, as in the code of 2023; no special token is ever
added by itself, and there is no padding token until the caller sets one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AddedToken, PreTrainedTokenizer

from qwen_vl.errors import (
    FixedVocabularyError,
    MalformedTextError,
    QwenVLError,
    UnknownTokenError,
)
from qwen_vl.image_sources import ImageText
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
    build_encoding,
    parse_ranks,
    read_rank_file,
    special_ids,
)

Token = bytes | str
AllowedSpecial = Literal["all"] | Collection[str]


class QwenVLTokenizer(PreTrainedTokenizer):
    """Text to ids and back, with images written as `<img>path</img>`.

    Args:
        vocab_file: a tiktoken rank file.
        style: helper revision of 2023; r1 writes `Picture 1:<img>` and knows no
            `keep_image_special`, r2 has both.
        n_image_tokens: ids between `<img>` and `</img>`, the model's number of queries.
        errors: how `decode` treats bytes that are not UTF-8, as in `bytes.decode`.
        kwargs: what every transformers tokenizer takes (`pad_token`, `padding_side`, …).

    Raises:
        RankFileError: the rank file cannot be used.
    """

    vocab_files_names = {"vocab_file": "qwen.tiktoken"}  # noqa: RUF012  # the base class's protocol
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012  # as above
    IMAGE_ST = IMAGE_TAGS  # the name that code of 2023 looks for

    def __init__(
        self,
        vocab_file: str | Path,
        *,
        style: Style = "r2",
        n_image_tokens: int = 256,
        errors: str = "replace",
        **kwargs: Any,
    ) -> None:
        if style not in ("r1", "r2"):
            raise QwenVLError(f"unknown style {style!r}", hint="Use r1 or r2.")
        self.vocab_file = str(vocab_file)
        self.style: Style = style
        self.n_image_tokens = n_image_tokens
        self.errors = errors
        self._rank_file = read_rank_file(Path(vocab_file))
        ranks = parse_ranks(self._rank_file, Path(vocab_file).name)
        self.n_ranks = len(ranks)
        self.special_ids = special_ids(self.n_ranks)
        self._encoding = build_encoding(ranks)
        self._tokens: dict[int, Token] = {i: token for token, i in ranks.items()}
        self._tokens |= {i: token for token, i in self.special_ids.items()}
        self._ids: dict[Token, int] = {token: i for i, token in self._tokens.items()}
        self.eod_id = self.special_ids[END_OF_TEXT]
        self.im_start_id = self.special_ids[IM_START]
        self.im_end_id = self.special_ids[IM_END]
        self.spans = SpanLayout(
            self.special_ids[IMG_START],
            self.special_ids[IMG_END],
            self.special_ids[IMG_PAD],
            n_image_tokens,
        )
        self._grounding_ids = frozenset(self.special_ids[tag] for tag in GROUNDING_TAGS)
        kwargs.setdefault("special_tokens_pattern", "none")
        # the base class keeps what it is given here for save_pretrained
        kwargs |= {"style": style, "n_image_tokens": n_image_tokens, "errors": errors}
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # theirs has no types

    @property
    def vocab_size(self) -> int:
        return self.n_ranks + len(SPECIAL_TOKENS)

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[Token, int]:  # type: ignore[override]  # our tokens are bytes too
        return dict(self._ids)

    # ---- text to ids

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
        allowed = "all" if allowed_special == "all" else set(allowed_special)
        ids = self._encoding.encode(
            unicodedata.normalize("NFC", text),
            allowed_special=cast("Any", allowed),
            disallowed_special=(),
        )
        return encode_spans(ids, self.spans, self._tokens.__getitem__)

    def tokenize(  # type: ignore[override]  # our tokens are bytes too
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        *,
        allowed_special: AllowedSpecial = "all",
        split_special_tokens: bool = False,
        **kwargs: Any,
    ) -> list[Token]:
        """Text to tokens; inside an image span, the token whose id is the path's byte."""
        allowed = () if split_special_tokens else allowed_special
        return [self._tokens[i] for i in self._text_ids(text, allowed)]

    def convert_tokens_to_ids(  # type: ignore[override]  # our tokens are bytes too
        self, tokens: Token | Sequence[Token] | None
    ) -> int | list[int | None] | None:
        if tokens is None or isinstance(tokens, (bytes, str)):
            return None if tokens is None else self._ids.get(tokens)
        return [self._ids.get(token) for token in tokens]

    # ---- ids to text

    def convert_ids_to_tokens(  # type: ignore[override]  # our tokens are bytes too
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> Token | list[Token]:
        """Raises UnknownTokenError for ids beyond the vocabulary."""
        if isinstance(ids, int):
            return self._token(ids)
        kept = (int(i) for i in ids)
        return [self._token(i) for i in kept if not skip_special_tokens or i < self.n_ranks]

    def _token(self, token_id: int) -> Token:
        try:
            return self._tokens[token_id]
        except KeyError:
            raise UnknownTokenError(token_id) from None

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
        if literal and token_id not in self._tokens:
            return "\ufffd".encode()
        token = self._token(token_id)
        return token if isinstance(token, bytes) else token.encode()

    def convert_tokens_to_string(self, tokens: Sequence[Token]) -> str:
        joined = b"".join(t if isinstance(t, bytes) else t.encode() for t in tokens)
        return joined.decode("utf-8", errors=self.errors)

    # ---- lists of elements

    def from_list_format(self, elements: Iterable[Mapping[str, Any]]) -> ImageText:
        """Write elements as one text; see `list_format.from_list_format`."""
        # one place stays free: a span without padding cannot be decoded
        return from_list_format(elements, style=self.style, name_limit=self.n_image_tokens - 1)

    def to_list_format(self, text: str) -> list[TextElement]:
        """Split a tagged text into elements; see `list_format.to_list_format`."""
        return to_list_format(text)

    # ---- files and the fixed vocabulary

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        target.write_bytes(self._rank_file)
        return (str(target),)

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

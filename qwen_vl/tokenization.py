"""QwenVLTokenizer: the tiktoken vocabulary of Qwen-VL as a transformers tokenizer.

Ordinary tokens are `bytes`, special ones `str`, as in the code of 2023; no special token is ever
added by itself, and there is no padding token until the caller sets one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizer

from qwen_vl.errors import UnknownTokenError
from qwen_vl.image_text_tokenizer import AllowedSpecial, ImageTextTokenizer, TextSettings, Token
from qwen_vl.list_format import Style
from qwen_vl.ranks import build_encoding, parse_ranks, read_rank_file


class QwenVLTokenizer(ImageTextTokenizer, PreTrainedTokenizer):  # type: ignore[misc]  # _decode
    """Text to ids and back, with images written as `<img>path</img>`.

    Args:
        vocab_file: a tiktoken rank file.
        style: see `TextSettings`; so are the next three.
        n_image_tokens: as above.
        image_size: as above.
        errors: as above.
        kwargs: what every transformers tokenizer takes (`pad_token`, `padding_side`, …).

    Raises:
        RankFileError: the rank file cannot be used.
    """

    vocab_files_names = {"vocab_file": "qwen.tiktoken"}  # noqa: RUF012  # the base class's protocol

    def __init__(
        self,
        vocab_file: str | Path,
        *,
        style: Style = "r2",
        n_image_tokens: int = 256,
        image_size: int = 448,
        errors: str = "replace",
        **kwargs: Any,
    ) -> None:
        settings = TextSettings(style, n_image_tokens, image_size, errors)
        self.vocab_file = str(vocab_file)
        self._rank_file = read_rank_file(Path(vocab_file))
        ranks = parse_ranks(self._rank_file, Path(vocab_file).name)
        self._encoding = build_encoding(ranks)
        self._set_up(len(ranks), settings)
        self._tokens: dict[int, Token] = {i: token for token, i in ranks.items()}
        self._tokens |= {i: token for token, i in self.special_ids.items()}
        self._ids: dict[Token, int] = {token: i for i, token in self._tokens.items()}
        kwargs.setdefault("special_tokens_pattern", "none")
        # the base class keeps what it is given here for save_pretrained
        super().__init__(**kwargs | asdict(settings))  # type: ignore[no-untyped-call]  # theirs has no types
        self.model_dir = self.name_or_path

    def get_vocab(self) -> dict[Token, int]:  # type: ignore[override]  # our tokens are bytes too
        return dict(self._ids)

    # ---- text to ids

    def _bpe_ids(self, text: str, allowed: AllowedSpecial) -> list[int]:
        return self._encoding.encode(
            text,
            allowed_special=cast("Any", allowed if allowed == "all" else set(allowed)),
            disallowed_special=(),
        )

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

    def convert_tokens_to_string(self, tokens: Sequence[Token]) -> str:
        joined = b"".join(t if isinstance(t, bytes) else t.encode() for t in tokens)
        return joined.decode("utf-8", errors=self.errors)

    # ---- files

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        target.write_bytes(self._rank_file)
        return (str(target),)

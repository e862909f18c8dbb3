"""QwenVLTokenizerFast: the same ids from tokenizer.json, with the tokenizers library.

Tokens are written in its byte-level spelling (`Ġhello`). AutoTokenizer gives QwenVLTokenizer, whose
tokens are those of 2023; this class is for tools that ask for a fast tokenizer, with offsets.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers.tokenization_utils_base import BatchEncoding
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.generic import PaddingStrategy

from model_store.files import copy_file
from qwen_vl.errors import RankFileError, UnknownTokenError
from qwen_vl.image_text_tokenizer import AllowedSpecial, ImageTextTokenizer, TextSettings, Token
from qwen_vl.list_format import Style
from qwen_vl.ranks import IMG_START, SPECIAL_TOKENS, read_ranks, special_ids
from qwen_vl.tokenizer_json import TOKENIZER_JSON, tokenizer_json, unspell


class QwenVLTokenizerFast(ImageTextTokenizer, TokenizersBackend):  # type: ignore[misc]  # _decode
    """`QwenVLTokenizer` on top of the tokenizers library; both give the same ids.

    Args:
        tokenizer_file: a tokenizer.json written by `write_tokenizer_json`.
        vocab_file: a tiktoken rank file, used where there is no tokenizer.json.
        style: see `TextSettings`; so are the next three.
        n_image_tokens: as above.
        image_size: as above.
        errors: as above.
        kwargs: what every transformers tokenizer takes (`pad_token`, `padding_side`, …).

    Raises:
        RankFileError: neither file is there, or it is not Qwen-VL's.
    """

    vocab_files_names = {  # noqa: RUF012  # the base class's protocol
        "tokenizer_file": TOKENIZER_JSON,
        "vocab_file": "qwen.tiktoken",
    }

    _tokenizer: Tokenizer

    def __init__(
        self,
        tokenizer_file: str | Path | None = None,
        vocab_file: str | Path | None = None,
        *,
        style: Style = "r2",
        n_image_tokens: int = 256,
        image_size: int = 448,
        errors: str = "replace",
        **kwargs: Any,
    ) -> None:
        settings = TextSettings(style, n_image_tokens, image_size, errors)
        self._tokenizer = _open(tokenizer_file, vocab_file)
        self._ranks_path = None if vocab_file is None else Path(vocab_file)
        self._set_up(self._tokenizer.get_vocab_size(with_added_tokens=False), settings)
        self._allowed_patterns = cache(_any_of)
        super().__init__(**kwargs | asdict(settings))  # type: ignore[no-untyped-call]  # theirs has no types
        self.model_dir = self.name_or_path

    @classmethod
    def convert_to_native_format(
        cls, trust_remote_code: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Leave the files to `__init__`."""
        return kwargs

    # ---- text to ids

    def _bpe_ids(self, text: str, allowed: AllowedSpecial) -> list[int]:
        # Not through `encode`: whether that sees special tokens is a switch of the whole object,
        # and a thread that turns it must not open the guard of another one.
        normal = self._tokenizer.normalizer.normalize_str(_scalar(text))
        special = self._allowed_patterns(
            SPECIAL_TOKENS if allowed == "all" else tuple(sorted(allowed))
        )
        model, words = self._tokenizer.model, self._tokenizer.pre_tokenizer
        ids: list[int] = []
        for number, part in enumerate(special.split(normal)):
            if number % 2:
                ids.append(self.special_ids[part])
            elif part:
                for word, _ in words.pre_tokenize_str(part):
                    ids += [token.id for token in model.tokenize(word)]
        return ids

    def _encode_plus(  # type: ignore[override]  # the same call, said shorter
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        single = not isinstance(text, list | tuple)
        texts = [text] if single else list(text)
        allowed = kwargs.pop("allowed_special", "all")
        plain = text_pair is None and all(isinstance(one, str) for one in texts)
        if not plain or (allowed == "all" and not any(IMG_START in one for one in texts)):
            if plain:
                text = _scalar(text) if single else [_scalar(one) for one in texts]
            return super()._encode_plus(text, text_pair, **kwargs)
        if kwargs.get("split_special_tokens"):
            allowed = ()
        rows = [self._text_ids(one, allowed) for one in texts]
        return self._batch(rows, single=single, **kwargs)

    def _batch(self, rows: list[list[int]], *, single: bool, **kwargs: Any) -> BatchEncoding:
        """Pad and convert ids; an image span is never cut, so `truncation` does not apply."""
        strategy = kwargs.get("padding_strategy", PaddingStrategy.DO_NOT_PAD)
        padded = self.pad(
            {"input_ids": rows, "token_type_ids": [[0] * len(row) for row in rows]},
            padding=strategy,
            max_length=kwargs.get("max_length"),
            pad_to_multiple_of=kwargs.get("pad_to_multiple_of"),
            padding_side=kwargs.get("padding_side"),
            return_attention_mask=kwargs.get("return_attention_mask"),
        )
        kind = kwargs.get("return_tensors")
        if single and kind is None:
            return BatchEncoding({key: value[0] for key, value in padded.items()})
        return BatchEncoding(dict(padded), tensor_type=kind)

    # ---- ids to text

    def _token(self, token_id: int) -> Token:
        if not 0 <= token_id < self.vocab_size:
            raise UnknownTokenError(token_id)
        spelled = cast("str", self._tokenizer.id_to_token(token_id))
        return unspell(spelled) if token_id < self.n_ranks else spelled

    # ---- files and the fixed vocabulary

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        # loading a folder "adds" the special tokens again, and does not call them special
        known = all(str(token) in self.special_ids for token in new_tokens)
        return 0 if known else super()._add_tokens(new_tokens, special_tokens)

    def _save_pretrained(
        self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        # the base class leaves the rank file out, and QwenVLTokenizer needs it
        saved = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        return (*saved, *self.save_vocabulary(str(save_directory)))

    def save_vocabulary(  # type: ignore[override]  # theirs promises one file
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        if self._ranks_path is None or not self._ranks_path.is_file():
            return ()
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        if target.absolute() != self._ranks_path.absolute():
            copy_file(self._ranks_path, target)
        return (str(target),)


def _open(tokenizer_file: str | Path | None, vocab_file: str | Path | None) -> Tokenizer:
    if tokenizer_file is not None and Path(tokenizer_file).is_file():
        name, data = Path(tokenizer_file).name, Path(tokenizer_file).read_bytes()
    elif vocab_file is not None:
        name, data = Path(vocab_file).name, tokenizer_json(read_ranks(Path(vocab_file)))
    else:
        raise RankFileError(f"there is neither {TOKENIZER_JSON} nor a rank file")
    try:
        opened = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises Exception itself
        raise RankFileError(f"{name}: {str(error).splitlines()[0]}") from error
    n_ranks = opened.get_vocab_size(with_added_tokens=False)
    if any(opened.token_to_id(token) != i for token, i in special_ids(n_ranks).items()):
        raise RankFileError(f"{name}: its special tokens are not Qwen-VL's")
    return opened


def _scalar(text: str) -> str:
    """Lone surrogates as U+FFFD, which is what tiktoken makes of them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Split by this: what it matched stands at odd places. Nothing matches an empty choice."""
    return re.compile("(" + "|".join(map(re.escape, tokens)) + ")" if tokens else r"((?!))")

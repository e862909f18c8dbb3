"""tokenizer.json of the tokenizers library, written from a tiktoken rank file.

A rank file lists tokens, tokenizer.json wants merges. Each token gets exactly one: byte-pair
encoding reaches a token from the two parts that the lower ranks leave of it, whatever stands
around it, so other splits of it never come up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from model_store.files import write_bytes
from qwen_vl.ranks import SPLIT_PATTERN, read_ranks, special_ids

TOKENIZER_JSON = "tokenizer.json"


def write_tokenizer_json(rank_file: Path, target: Path) -> None:
    """Write the tokenizer.json of a rank file; equal rank files give equal bytes.

    Raises:
        RankFileError: the rank file cannot be used.
    """
    write_bytes(target, tokenizer_json(read_ranks(rank_file)))


def tokenizer_json(ranks: Mapping[bytes, int]) -> bytes:
    """The file's bytes: NFC, Qwen's own splitting, byte-level BPE, 217 special tokens."""
    ordered = sorted(ranks, key=ranks.__getitem__)
    # every token is spelled once, and the spelling of a byte never changes
    spelled = {token: spell(token) for token in ordered}
    splits = ((token, last_merge(token, ranks)) for token in ordered if len(token) > 1)
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, i) for token, i in special_ids(len(ranks)).items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # a word that is a token needs no merges: tiktoken looks it up first, too
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for rank, token in enumerate(ordered)},
            "merges": [f"{spelled[split[0]]} {spelled[split[1]]}" for _, split in splits if split],
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _added(token: str, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        # looked for after NFC, which can take the last character away: `>` and U+0338 are `≯`
        "normalized": True,
        "special": True,
    }


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that byte-pair encoding joins last to make a token.

    None if the lower ranks leave more than two: then no text merges to it, and only a word that
    is the whole token becomes it.
    """
    limit = ranks[token]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
        lowest = min(joined)
        if lowest >= limit:
            return None
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_letters() -> str:
    """One printable character for each byte, as byte-level BPE has spelled bytes since GPT-2."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in plain else next(others)) for byte in range(256))


LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def spell(token: bytes) -> str:
    """A token's bytes as the characters that stand for them in tokenizer.json."""
    return token.decode("latin-1").translate(LETTERS)


def unspell(spelled: str) -> bytes:
    """The bytes of a token in tokenizer.json."""
    return bytes(_BYTES[letter] for letter in spelled)

"""Read a tiktoken rank file and build the encoding of Qwen-VL from it.

The published file has 151643 ranks, tests and demo models use small ones, so the ids of the 217
special tokens are always counted from the number of ranks.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import tiktoken

from qwen_vl.errors import RankFileError

MAX_FILE_BYTES = 64 * 2**20  # the published file has 2.6 MB

END_OF_TEXT = "<|endoftext|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
IMG_START, IMG_END, IMG_PAD = "<img>", "</img>", "<imgpad>"
GROUNDING_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
IMAGE_TAGS = (*GROUNDING_TAGS, IMG_START, IMG_END, IMG_PAD)
SPECIAL_TOKENS = (
    END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{i}|>" for i in range(205)), *IMAGE_TAGS,
)  # fmt: skip

ANY_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))

# What the ranks were trained with: contractions, words, single digits, punctuation, white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read and check a rank file; see `parse_ranks`."""
    return parse_ranks(read_rank_file(path), path.name)


def parse_ranks(data: bytes, name: str) -> dict[bytes, int]:
    """Read lines of `base64 rank`, with LF or CRLF ends.

    Raises:
        RankFileError: the file is damaged, has gaps, or lacks one of the 256 bytes.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            token, rank = _parse(line, f"{name}, line {number}")
            if token in ranks:
                raise RankFileError(f"{name}, line {number}: token {token!r} stands twice")
            ranks[token] = rank
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise RankFileError(f"{name}: ranks are not 0 … {len(ranks) - 1}, each once")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise RankFileError(f"{name}: byte 0x{missing:02x} has no rank")
    return ranks


def read_rank_file(path: Path) -> bytes:
    """The bytes of a rank file.

    Raises:
        RankFileError: it is missing or absurdly large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RankFileError(f"{path.name}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise RankFileError(f"{path.name}: over {MAX_FILE_BYTES} bytes")
    return data


def _parse(line: bytes, place: str) -> tuple[bytes, int]:
    token, _, rank = line.strip().partition(b" ")
    try:
        decoded = base64.b64decode(token, validate=True)
    except binascii.Error as error:
        raise RankFileError(f"{place}: not base64") from error
    if not decoded or not rank.isdigit() or len(rank) > 9:
        raise RankFileError(f"{place}: not `base64 rank`")
    return decoded, int(rank)


def special_ids(n_ranks: int) -> dict[str, int]:
    """The id of every special token, counted from the number of ranks."""
    return {token: n_ranks + offset for offset, token in enumerate(SPECIAL_TOKENS)}


def build_encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """The byte-pair encoding with its special tokens."""
    return tiktoken.Encoding(
        "qwen_vl",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=special_ids(len(ranks)),
    )

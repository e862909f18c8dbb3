"""Train a small tiktoken rank file: the 256 bytes, then the most frequent merges of the corpus.

Tiktoken merges any two neighbours whose joined bytes have a rank, lowest rank first, whichever pair
the rank was learned from. So this trainer counts joined bytes, not pairs, and encodes every word
again by that very rule after each new rank; no rank is then out of reach.

Examples:
  python scripts/train_ranks.py build/tiny.tiktoken
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import regex  # type: ignore[import-untyped]  # comes with tiktoken

from model_store.command import emit, run_command
from model_store.files import write_bytes
from qwen_vl.ranks import ANY_SPECIAL, SPLIT_PATTERN
from scripts.tiny_corpus import turns

N_MERGES = 512
MAX_TOKEN = 12  # bytes; Chinese is not cut at words, and whole sentences would become tokens


def split_words(texts: Iterable[str]) -> Counter[bytes]:
    """Count the words that the published pattern cuts texts into."""
    pattern = regex.compile(SPLIT_PATTERN)
    return Counter(word.encode() for text in texts for word in pattern.findall(text))


def train(words: Counter[bytes], n_merges: int) -> list[bytes]:
    """Return the tokens in the order of their ranks: 256 bytes, then at most `n_merges` more."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    split = {word: [word[i : i + 1] for i in range(len(word))] for word in words}
    for _ in range(n_merges):
        pairs: Counter[bytes] = Counter()
        for word, count in words.items():
            parts = split[word]
            for joined in map(bytes.__add__, parts, parts[1:]):
                if len(joined) <= MAX_TOKEN:
                    pairs[joined] += count
        # bytes decide between equal counts, so the order of the corpus does not matter
        best = max(pairs, key=lambda joined: (pairs[joined], joined), default=None)
        if best is None or pairs[best] < 2:
            break
        ranks[best] = len(ranks)
        for word in words:
            if best in word:
                split[word] = encode_word(word, ranks)
    return list(ranks)


def encode_word(word: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Merge a word's bytes as tiktoken does: the lowest rank first, the leftmost of equals."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        known = [
            (ranks[joined], place)
            for place, joined in enumerate(map(bytes.__add__, parts, parts[1:]))
            if joined in ranks
        ]
        if not known:
            break
        _, place = min(known)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def rank_file(tokens: Iterable[bytes]) -> bytes:
    """The lines of a tiktoken rank file."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    return b"".join(lines)


def trained_rank_file(n_merges: int = N_MERGES) -> bytes:
    """Train on the committed corpus."""
    texts = [part for turn in turns() for text in turn for part in ANY_SPECIAL.split(text)]
    texts += ["system", "user", "assistant", "\n"]
    return rank_file(train(split_words(texts), n_merges))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="the rank file to write")
    parser.add_argument("--merges", type=int, default=N_MERGES, help="at most so many merges")


def run(args: argparse.Namespace) -> int:
    data = trained_rank_file(args.merges)
    write_bytes(args.output, data)
    count = data.count(b"\n")
    emit(args, {"path": str(args.output), "ranks": count}, f"{args.output}: {count} ranks")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(add_arguments, run, None, about=__doc__))

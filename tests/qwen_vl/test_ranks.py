import hashlib
from pathlib import Path

import pytest

from qwen_vl.errors import RankFileError
from qwen_vl.ranks import build_encoding, read_ranks, special_ids
from tests.qwen_vl.text_goldens import (
    PUBLISHED_SHA256,
    golden,
    published_rank_file,
    small_ranks,
    write_rank_file,
)


def test_the_published_file_has_the_known_ranks_and_special_ids() -> None:
    path = published_rank_file()

    ranks = read_ranks(path)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == PUBLISHED_SHA256
    assert len(ranks) == 151643
    assert special_ids(len(ranks)) == golden("tokenizer")["facts"]["special_tokens"]


def test_crlf_line_ends_give_the_same_ranks(tmp_path: Path) -> None:
    lf = write_rank_file(tmp_path / "lf.tiktoken", small_ranks())
    crlf = write_rank_file(tmp_path / "crlf.tiktoken", small_ranks(), end=b"\r\n")

    assert read_ranks(lf) == read_ranks(crlf) == {t: i for i, t in enumerate(small_ranks())}


def test_special_ids_are_counted_from_the_number_of_ranks(tmp_path: Path) -> None:
    ranks = read_ranks(write_rank_file(tmp_path / "small.tiktoken", small_ranks()))

    ids = build_encoding(ranks).encode("hello<|im_end|></img>", allowed_special="all")

    assert ids == [257, ord("l"), ord("o"), 258 + 2, 258 + 215]
    assert len(special_ids(258)) == 217


def test_text_is_split_where_the_ranks_were_trained_to_split(tmp_path: Path) -> None:
    merges = [b"12", b" a", b"a ", b"'s", b".\n", b"  "]
    tokens = [*(bytes([byte]) for byte in range(256)), *merges]
    encoding = build_encoding(read_ranks(write_rank_file(tmp_path / "small.tiktoken", tokens)))

    pieces = [encoding.decode([i]) for i in encoding.encode("12 a a's.\n   b")]

    assert pieces == ["1", "2", " a", " a", "'s", ".\n", "  ", " ", "b"]


@pytest.mark.parametrize(
    ("tokens", "part"),
    [
        (small_ranks()[:255], "byte 0xff has no rank"),
        ([*small_ranks(), b"he"], "stands twice"),
        ([b"", *small_ranks()], "line 1"),
        ([], "byte 0x00"),
    ],
)
def test_an_unusable_vocabulary_is_refused(tmp_path: Path, tokens: list[bytes], part: str) -> None:
    path = write_rank_file(tmp_path / "bad.tiktoken", tokens)

    with pytest.raises(RankFileError, match=part):
        read_ranks(path)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"aGVs 257", b"aGVs 999", "each once"),
        (b"aGVs 257", b"aGVs 256", "each once"),
        (b"aGVs 257", b"aGVs -1", "line 258"),
        (b"aGVs 257", b"aG*s 257", "not base64"),
        (b"aGVs 257", b"version https://git-lfs", "line 258"),
    ],
)
def test_a_damaged_line_is_refused(tmp_path: Path, old: bytes, new: bytes, part: str) -> None:
    path = write_rank_file(tmp_path / "bad.tiktoken", small_ranks())
    path.write_bytes(path.read_bytes().replace(old, new))

    with pytest.raises(RankFileError, match=part):
        read_ranks(path)


def test_a_missing_file_is_one_line_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RankFileError) as caught:
        read_ranks(tmp_path / "qwen.tiktoken")

    assert "\n" not in str(caught.value)
    assert caught.value.hint

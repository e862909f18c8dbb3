import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import NFC
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.errors import MalformedTextError, RankFileError, UnknownTokenError
from qwen_vl.fast_tokenizer import QwenVLTokenizerFast
from qwen_vl.ranks import IMAGE_TAGS, SPECIAL_TOKENS, read_ranks
from qwen_vl.tokenizer_json import last_merge, spell, tokenizer_json, unspell, write_tokenizer_json
from tests.qwen_vl.adversarial_text import adversarial_texts
from tests.qwen_vl.text_goldens import (
    golden,
    published_rank_file,
    published_tokenizer,
    small_ranks,
    write_rank_file,
)

COUNT = 20_000
# The tokenizers library normalises by an older Unicode than Python 3.11's 14.0: these marks have
# no combining class there, so it does not reorder them. It is the only difference there may be.
YOUNGER_MARKS = (
    (0x7FD, 0x7FD), (0x898, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C),
    (0xD3B, 0xD3C), (0xEBA, 0xEBA), (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA),
    (0xA82C, 0xA82C), (0x10D24, 0x10D27), (0x10EAB, 0x10EAC), (0x10F46, 0x10F50),
    (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B), (0x1145E, 0x1145E),
    (0x11839, 0x1183A), (0x1193D, 0x1193E), (0x11943, 0x11943), (0x119E0, 0x119E0),
    (0x11A34, 0x11A34), (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D42),
    (0x11D44, 0x11D45), (0x11D97, 0x11D97), (0x16FF0, 0x16FF1), (0x1E130, 0x1E136),
    (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF),
)  # fmt: skip
YOUNGER = {chr(code) for low, high in YOUNGER_MARKS for code in range(low, high + 1)}


@pytest.fixture(scope="module")
def published_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fast") / "tokenizer.json"
    write_tokenizer_json(published_rank_file(), path)
    return path


@pytest.fixture(scope="module")
def fast(published_json: Path) -> QwenVLTokenizerFast:
    return QwenVLTokenizerFast(published_json)


def _scalar(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _differing(texts: list[str], rows: list[list[int]], **how: Any) -> list[str]:
    slow = published_tokenizer()
    return [
        text
        for text, ids in zip(texts, rows, strict=True)
        if slow.encode(text, **how) != ids and not YOUNGER & set(text)
    ]


def test_twenty_thousand_hostile_texts_have_the_same_ids(
    fast: QwenVLTokenizerFast, published_json: Path
) -> None:
    texts = list(adversarial_texts(COUNT))
    plain = Tokenizer.from_file(str(published_json))

    ours = [fast.encode(text) for text in texts]
    guarded = [fast.encode(text, allowed_special=()) for text in texts]
    theirs = plain.encode_batch([_scalar(text) for text in texts], add_special_tokens=False)

    assert _differing(texts, ours) == []
    assert _differing(texts, guarded, allowed_special=()) == []
    assert _differing(texts, [one.ids for one in theirs]) == []
    assert sum(bool(YOUNGER & set(text)) for text in texts) < COUNT / 100


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="another Python, another Unicode")
def test_the_listed_marks_are_all_that_nfc_treats_otherwise() -> None:
    theirs = NFC()
    found = set()
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        letter = chr(code)
        for text in (letter, f"a{letter}\u0334", f"a\u0345{letter}", f"a\u0301{letter}"):
            if unicodedata.normalize("NFC", text) != theirs.normalize_str(text):
                found.add(letter)

    assert found == YOUNGER


@pytest.mark.parametrize(
    "case", golden("tokenizer")["strings"], ids=lambda c: ascii(c["text"])[:30]
)
def test_what_was_recorded_holds_for_it_too(
    fast: QwenVLTokenizerFast, case: dict[str, object]
) -> None:
    text = str(case["text"])
    try:
        want = published_tokenizer().encode(text)
    except MalformedTextError as error:
        with pytest.raises(type(error)):
            fast.encode(text)
        return

    assert fast.encode(text) == want
    assert fast(text)["input_ids"] == want
    assert fast.decode(want, literal=True) == published_tokenizer().decode(want, literal=True)


def test_there_is_one_merge_per_token_of_two_bytes_or_more(published_json: Path) -> None:
    content = json.loads(published_json.read_text())

    assert len(content["model"]["vocab"]) == 151_643
    assert len(content["model"]["merges"]) == 151_643 - 256
    assert published_json.stat().st_size < 6_000_000


def test_equal_ranks_give_equal_bytes(published_json: Path) -> None:
    assert tokenizer_json(read_ranks(published_rank_file())) == published_json.read_bytes()


def test_a_token_that_nothing_merges_to_is_a_word_of_its_own(tmp_path: Path) -> None:
    tokens = [*small_ranks(), b"xyz"]  # neither xy nor yz is a token
    fast = QwenVLTokenizerFast(vocab_file=write_rank_file(tmp_path / "qwen.tiktoken", tokens))
    ranks = {token: rank for rank, token in enumerate(tokens)}

    assert last_merge(b"xyz", ranks) is None
    assert last_merge(b"hel", ranks) == (b"he", b"l")
    assert fast.encode("xyz") == [258]
    assert fast.encode("xyzh") == [120, 121, 122, 104]


def test_every_byte_has_a_letter() -> None:
    every = bytes(range(256))

    assert unspell(spell(every)) == every
    assert spell(b" A\n") == "ĠAĊ"
    assert len(set(spell(every))) == 256


def test_image_spans_and_batches_are_those_of_the_other_tokenizer(
    fast: QwenVLTokenizerFast,
) -> None:
    slow = published_tokenizer()
    texts = ["hi", "Picture 1: <img>图.png</img>\nwhat?", "<ref>a</ref><box>(1,2),(3,4)</box>"]

    made = fast(texts)

    assert made["input_ids"] == [slow.encode(text) for text in texts]
    assert fast.decode(made["input_ids"][1]) == texts[1]
    assert fast(texts[2], return_tensors="pt")["input_ids"].tolist() == [slow.encode(texts[2])]
    with pytest.raises(UnknownTokenError):
        fast.decode([151_900])


def test_offsets_are_given_where_there_are_no_images(fast: QwenVLTokenizerFast) -> None:
    made = fast("one two", return_offsets_mapping=True)

    assert made["offset_mapping"] == [(0, 3), (3, 7)]
    assert fast.is_fast


def test_the_guard_is_no_switch_that_another_call_can_turn(fast: QwenVLTokenizerFast) -> None:
    for switch in (False, True):
        fast._tokenizer.encode_special_tokens = switch

        for token in SPECIAL_TOKENS:
            kept = fast.encode(f"a{token}b", allowed_special=())
            assert kept == published_tokenizer().encode(f"a{token}b", allowed_special=())
            assert max(kept) < fast.n_ranks
    fast._tokenizer.encode_special_tokens = False
    assert fast.encode("<|im_end|><ref>", allowed_special=IMAGE_TAGS)[-1] == 151_851


def test_a_folder_gives_either_class(tmp_path: Path) -> None:
    ranks = write_rank_file(tmp_path / "qwen.tiktoken", small_ranks())
    write_tokenizer_json(ranks, tmp_path / "tokenizer.json")
    saved = tmp_path / "saved"

    fast = QwenVLTokenizerFast.from_pretrained(
        tmp_path, n_image_tokens=6, pad_token="<|endoftext|>"
    )  # no password
    fast.save_pretrained(saved)
    again = QwenVLTokenizerFast.from_pretrained(saved)
    auto = AutoTokenizer.from_pretrained(saved)
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))

    text = "hello<img>ab</img>"
    assert type(auto).__name__ == "QwenVLTokenizer"
    assert fast.encode(text) == again.encode(text) == auto.encode(text)
    assert again.pad_token_id == fast.eod_id
    assert plain("hello<|im_end|>")["input_ids"] == fast.encode("hello<|im_end|>")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\x00" * 9])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)

    with pytest.raises(RankFileError) as caught:
        QwenVLTokenizerFast(path)

    assert "\n" not in str(caught.value)


def test_another_models_file_is_refused(tmp_path: Path) -> None:
    path = write_rank_file(tmp_path / "qwen.tiktoken", small_ranks())
    write_tokenizer_json(path, tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text().replace("<|im_end|>", "<|eot|>")
    (tmp_path / "tokenizer.json").write_text(text)

    with pytest.raises(RankFileError, match="special tokens"):
        QwenVLTokenizerFast(tmp_path / "tokenizer.json")

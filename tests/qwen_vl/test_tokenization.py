import base64
import pickle
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl.errors import (
    FixedVocabularyError,
    ImagePathTooLongError,
    MalformedTextError,
    QwenVLError,
    UnknownTokenError,
)
from qwen_vl.ranks import IMAGE_TAGS
from qwen_vl.tokenization import QwenVLTokenizer
from tests.qwen_vl.text_goldens import (
    agrees,
    golden,
    published_rank_file,
    published_tokenizer,
    small_ranks,
    write_rank_file,
)

RECORDED = golden("tokenizer")
CASES = RECORDED["strings"]
NAMES = [ascii(case["text"])[:30] for case in CASES]


@pytest.fixture
def small(tmp_path: Path) -> QwenVLTokenizer:
    path = write_rank_file(tmp_path / "qwen.tiktoken", small_ranks())
    return QwenVLTokenizer(path, n_image_tokens=6)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_text_encodes_as_recorded(case: dict[str, Any]) -> None:
    tokenizer, text = published_tokenizer(), case["text"]

    assert agrees(lambda: tokenizer.encode(text), case["encode"])
    assert agrees(
        lambda: tokenizer.encode(text, allowed_special=IMAGE_TAGS), case["encode_image_tags_only"]
    )
    assert agrees(lambda: tokenizer.encode(text, allowed_special=()), case["encode_no_special"])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("which", ["encode", "encode_image_tags_only"])
def test_ids_decode_as_recorded(case: dict[str, Any], which: str) -> None:
    ids, want = case[which].get("ok"), case.get(f"from_{which}")
    if want is None:
        pytest.skip("nothing was recorded: the text does not encode")
    r1, r2 = published_tokenizer("r1"), published_tokenizer("r2")
    hide: dict[str, Any] = {"skip_special_tokens": True, "keep_image_special": True}

    assert agrees(lambda: r2.decode(ids), want["decode"])
    assert agrees(lambda: r2.decode(ids, skip_special_tokens=True), want["decode_skip_special"])
    assert agrees(lambda: r1.decode(ids, **hide), want["decode_skip_special"])
    assert agrees(lambda: r2.decode(ids, **hide), want["decode_skip_special_keep_image_r2"])


@given(st.text(max_size=30))
def test_any_text_comes_back_normalised(text: str) -> None:
    tokenizer = published_tokenizer()

    assert tokenizer.decode(tokenizer.encode(text, allowed_special=())) == normalize("NFC", text)


@pytest.mark.parametrize("case", RECORDED["decode_ids"], ids=lambda case: str(case["ids"])[:30])
def test_odd_ids_decode_as_recorded(case: dict[str, Any]) -> None:
    tokenizer, ids = published_tokenizer(), case["ids"]

    def tokens() -> list[dict[str, str]]:
        found = tokenizer.convert_ids_to_tokens(ids)
        assert isinstance(found, list)
        return [
            {"s": token} if isinstance(token, str) else {"b": base64.b64encode(token).decode()}
            for token in found
        ]

    assert agrees(lambda: tokenizer.decode(ids), case["decode"])
    assert agrees(lambda: tokenizer.decode(ids, skip_special_tokens=True), case["skip_special"])
    assert agrees(lambda: tokenizer.decode(ids, errors="ignore"), case["errors_ignore"])
    assert agrees(lambda: tokenizer.decode(ids, errors="strict"), case["errors_strict"])
    assert agrees(tokens, case["tokens"])


@pytest.mark.parametrize("case", RECORDED["batch"])
def test_a_batch_is_padded_as_recorded(case: dict[str, Any]) -> None:
    tokenizer = QwenVLTokenizer(published_rank_file(), padding_side=case["side"])
    length = case.get("truncation_max_length")
    how: dict[str, Any] = {"padding": True}
    if length is not None:
        how = {"padding": "max_length", "truncation": True, "max_length": length}

    def batch() -> dict[str, Any]:
        return dict(tokenizer(case["strings"], **how))

    if "before_pad_token_set" in case:
        assert agrees(batch, case["before_pad_token_set"])
    tokenizer.pad_token_id = tokenizer.eod_id
    assert agrees(batch, case["result"])
    assert tokenizer.pad_token == "<|endoftext|>"


def test_the_tokenizer_states_the_recorded_facts() -> None:
    tokenizer, facts = published_tokenizer(), RECORDED["facts"]

    assert len(tokenizer) == tokenizer.vocab_size == facts["n_vocab"]
    assert tokenizer.eod_id == facts["eod_id"]
    assert (tokenizer.im_start_id, tokenizer.im_end_id) == (151644, 151645)
    assert tokenizer.model_input_names == facts["model_input_names"]
    assert tokenizer.all_special_tokens == []
    assert tokenizer.pad_token is tokenizer.eos_token is tokenizer.bos_token is None
    assert tokenizer.convert_tokens_to_ids(["<img>", b"hello", "hello"]) == [151857, 14990, None]


def test_the_vocabulary_cannot_grow(small: QwenVLTokenizer) -> None:
    assert small.add_tokens(["<|im_start|>"], special_tokens=True) == 0
    with pytest.raises(FixedVocabularyError, match="regular"):
        small.add_tokens(["word"])
    with pytest.raises(FixedVocabularyError, match="<new>"):
        small.add_tokens(["<new>"], special_tokens=True)


def test_a_small_rank_file_counts_its_own_special_ids(small: QwenVLTokenizer) -> None:
    ids = small.encode("hel<img>ab</img>")

    assert ids == [257, 258 + 214, ord("a"), ord("b"), *[258 + 216] * 4, 258 + 215]
    assert small.decode(ids) == "hel<img>ab</img>"


def test_a_path_longer_than_a_span_is_refused(small: QwenVLTokenizer) -> None:
    with pytest.raises(ImagePathTooLongError) as caught:
        small.encode("<img>1234567</img>")

    assert "Path" in caught.value.hint


def test_literal_decoding_never_raises(small: QwenVLTokenizer) -> None:
    image, end, pad = 258 + 214, 258 + 215, 258 + 216
    whole = [image, ord("a"), pad, end]

    text = small.decode([image, ord("b"), end, *whole, 9999, -1, image], literal=True)

    assert text == "<img>b</img><img>a</img>��<img>"


def test_an_image_that_never_closes_is_an_error_by_default(small: QwenVLTokenizer) -> None:
    with pytest.raises(MalformedTextError, match="Unclosed image token"):
        small.decode([258 + 214, 97])


def test_an_unknown_id_says_which(small: QwenVLTokenizer) -> None:
    with pytest.raises(UnknownTokenError) as caught:
        small.decode([97, 5000])

    assert caught.value.token_id == 5000
    assert str(caught.value) == "Invalid token for decoding: 5000"


def test_saving_keeps_the_rank_file_and_the_style(tmp_path: Path) -> None:
    ranks = write_rank_file(tmp_path / "qwen.tiktoken", small_ranks())
    saved = tmp_path / "saved"
    QwenVLTokenizer(ranks, style="r1", n_image_tokens=6).save_pretrained(saved)

    loaded = QwenVLTokenizer.from_pretrained(saved)

    assert (saved / "qwen.tiktoken").read_bytes() == ranks.read_bytes()
    assert (loaded.style, loaded.n_image_tokens) == ("r1", 6)
    assert loaded.encode("hel<img>a</img>") == [257, 472, 97, *[474] * 5, 473]


def test_a_pickled_tokenizer_encodes_the_same(small: QwenVLTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(small))

    assert copy.encode("hello <|im_end|>") == small.encode("hello <|im_end|>")


def test_an_unknown_style_is_refused(tmp_path: Path) -> None:
    path = write_rank_file(tmp_path / "qwen.tiktoken", small_ranks())

    with pytest.raises(QwenVLError, match="r3"):
        QwenVLTokenizer(path, style="r3")  # type: ignore[arg-type]  # what is tested

from pathlib import Path
from typing import Any

import pytest

from qwen_vl.errors import ConversationError
from qwen_vl.sft import IGNORED, is_whole, labels
from qwen_vl.tokenization import QwenVLTokenizer
from tests.qwen_vl.text_goldens import (
    agrees,
    golden,
    published_tokenizer,
    small_ranks,
    write_rank_file,
)


@pytest.mark.parametrize("case", golden("sft_labels"), ids=lambda c: str(c["max_len"]))
def test_labels_are_as_recorded(case: dict[str, Any]) -> None:
    tokenizer = published_tokenizer()
    want = case
    if "input_ids" in case:
        want = {"ok": [case["input_ids"], case["labels"]]}

    assert agrees(lambda: labels(case["conversations"], tokenizer, case["max_len"]), want)


def test_with_a_small_vocabulary_only_the_answer_and_the_marks_are_learned(tmp_path: Path) -> None:
    ranks = write_rank_file(tmp_path / "small.tiktoken", small_ranks())
    tokenizer = QwenVLTokenizer(ranks)
    turns = [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "he A"}]

    ids, targets = labels(turns, tokenizer, 200, system="")

    learned = [i for i in targets if i != IGNORED]
    marks = "<|im_start|><|im_end|>\n"
    assert tokenizer.decode(learned) == f"{marks}{marks}<|im_start|>he A<|im_end|>\n"
    assert all(target in (IGNORED, i) for i, target in zip(ids, targets, strict=True))


def test_a_cut_image_span_is_noticed() -> None:
    tokenizer = published_tokenizer()
    turns = [{"from": "user", "value": "<img>a.png</img>"}]

    assert is_whole(labels(turns, tokenizer, 400)[0], tokenizer)
    assert not is_whole(labels(turns, tokenizer, 100)[0], tokenizer)


@pytest.mark.parametrize("turns", [[], [{"from": "tool", "value": ""}], [{"value": ""}]])
def test_a_conversation_without_known_turns_is_refused(turns: list[dict[str, str]]) -> None:
    with pytest.raises(ConversationError):
        labels(turns, published_tokenizer(), 10)

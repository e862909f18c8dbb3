"""The rank file of the trained tiny model: single bytes, and the pieces that its templates need.

A word that is one token, always, is a word that a small model can learn. English pieces come from
byte-pair training over the templates' words; Chinese ones are written down, because a sentence has
no spaces and training would glue neighbours together.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

from qwen_vl.ranks import ANY_SPECIAL
from qwen_vl.scene_small_talk import TALK
from qwen_vl.scene_words import BACKGROUNDS, COLOURS, GLYPHS, SHAPES, SIDES
from qwen_vl.scenes import KINDS, samples
from scripts.train_ranks import rank_file, split_words, train

_WORDS_ZH = (
    *(one.zh for one in (*COLOURS, *BACKGROUNDS, *SHAPES, *SIDES.values())),
    "图中", "图形", "图片", "什么", "颜色", "形状", "位置", "背景", "柱子", "文字", "写着", "答案",
    "一个", "几个", "几根", "哪边", "哪张", "哪根", "哪里", "多少", "框出", "描述", "读出", "这张",
    "两张", "第一张", "第二张", "一样多", "更多", "最高", "最矮", "没有", "不是", "柱状图",
    "背景上",
)  # fmt: skip
_ENGLISH_MERGES = 400
_SAMPLES = 3000
_ROLES = ("system", "user", "assistant", "\n", "You are a helpful assistant.",
          "Picture 1: ", "Picture 2: ", "Question: ", "Context: N/A", "Options: ",
          " Answer:", " Please answer yes or no.")  # fmt: skip


def template_texts() -> list[str]:
    """Everything that questions and answers say, without what is printed in the pictures.

    Nor what the model cannot know: made-up words must not earn pieces.
    """
    kinds = tuple(kind for kind in KINDS if kind not in ("reading", "glyphs"))
    texts = []
    for one in samples(0, _SAMPLES, split="train", kinds=(*kinds, "comparison")):
        for text in (one.question, one.answer, *(answer for _, answer in one.history)):
            texts += ANY_SPECIAL.split(text)
    talked = [text for turns in TALK.values() for turn in turns for text in turn]
    asked = [one.question for one in samples(1, 8, split="train", kinds=("reading",))]
    return texts + 20 * (talked + asked) + 200 * list(_ROLES)


def tiny_rank_file() -> bytes:
    """The rank file, the same bytes every time."""
    texts = template_texts()
    words = split_words(texts)
    english = Counter({w: n for w, n in words.items() if w.isascii() and not _is_printed(w)})
    tokens = train(english, _ENGLISH_MERGES)
    known = set(tokens)
    characters = sorted({c for c in chain(GLYPHS, *texts) if ord(c) > 127})
    for piece in chain.from_iterable(_prefixes(c.encode(), 2) for c in characters):
        if piece not in known:
            known.add(piece)
            tokens.append(piece)
    for word in _WORDS_ZH:
        for length in range(2, len(word) + 1):
            piece = word[:length].encode()
            if piece not in known:
                known.add(piece)
                tokens.append(piece)
    return rank_file(tokens)


def _is_printed(word: bytes) -> bool:
    """Whether a word is a printed string: those are spelt, character by character."""
    return word.strip().isupper() and len(word.strip()) > 1 and word.strip() != b"N"


def _prefixes(word: bytes, shortest: int) -> list[bytes]:
    return [word[:length] for length in range(shortest, len(word) + 1)]

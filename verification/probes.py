"""The seeded questions that both sides are asked, and the strings both tokenizers must agree on.

Three in four probes show drawn scenes, one in four is text only; English and Chinese take turns.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from numpy.random import PCG64
from PIL import Image

from qwen_vl.scenes import Sample, samples

Box = tuple[int, int, int, int]
Elements = tuple[dict[str, Image.Image | str], ...]
Language = Literal["en", "zh"]
_ROUND = 4  # a question for a box, two others with images, one without
_BOXED = ("grounding", "grounding", "dialogue")
_OTHERS = (
    "colour", "counting", "relation", "reading", "shape", "chart", "choice", "presence",
    "comparison", "background", "region", "caption",
)  # fmt: skip
_GROUNDED = re.compile(r"<ref>(.*?)</ref><box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")

_SUBJECTS = {
    "en": ("a lighthouse", "an abacus", "the tides", "a kite", "bread", "a compass", "snow",
           "a bicycle", "honey", "the moon", "a bridge", "tea"),
    "zh": ("灯塔", "算盘", "潮汐", "风筝", "面包", "指南针",
           "雪", "自行车", "蜂蜜", "月亮", "桥", "茶"),
}  # fmt: skip
_TEMPLATES = {
    "en": ("Explain {0} to a child in one sentence.", "Write two lines of a poem about {0}.",
           "What do {0} and {1} have in common?", "Translate into Chinese: I like {0}.",
           "Give three facts about {0}.", "Is {0} older than {1}? Answer briefly."),
    "zh": ("用一句话向孩子解释{0}。", "写两行关于{0}的诗。", "{0}和{1}有什么共同点？",
           "把“我喜欢{0}”翻译成英文。", "说出关于{0}的三个事实。",
           "{0}比{1}更古老吗？请简短回答。"),
}  # fmt: skip

# each one has caught some tokenizer: composition, widths, controls, special text, long runs
TRICKY_STRINGS = (
    "", " ", "  \t\n\r\n ", "a", "The quick brown fox's 12 345.678 naïve cafés!",
    "e\u0301 \u00e9 \u212b \uf900", "你好，世界！今天是2023年8月22日。", "繁體中文，龘靐齉爩",
    "\uff26\uff35\uff2c\uff2c \uff11\uff12\uff13\u3000", "日本語ひらがなカタカナ", "한국어 텍스트",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "Привет, мир", "हिन्दी ไทย",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3 \u270a\U0001f3ff",
    "\u200b\ufeff\u00a0|\u202e|", "\U0001d518\U0001d52b \U00013000", "\x00\x01\x7f",
    "def f(x):\n\treturn {'a': x ** 2}  # ok\n", "https://example.org/a?b=c&d=%20#e",
    "aaaaaaaa" * 40, "1234567890" * 12, "    eight    spaces        here",
    "don't DON'T we'll I'd", "<|im_start|>user\nhi<|im_end|>", "<|endoftext|>",
    "<|extra_0|><|extra_204|>", "<ref>the red circle</ref><box>(12,34),(567,890)</box>",
    "<quad>(1,2),(3,4),(5,6),(7,8)</quad>", "</img> alone, </ref></box>",
    "<im_start> <img_> < img >", "\ud7ff \ue000 \ufffd",
)  # fmt: skip


# what the made-up strings are drawn from: letters, CJK, kana, hangul, arabic, symbols, emoji, space
_RANGES = (
    (0x20, 0x7E), (0x61, 0x7A), (0x4E00, 0x9FFF), (0x3041, 0x30FF), (0xAC00, 0xD7A3),
    (0x0621, 0x064A), (0x0400, 0x04FF), (0x2000, 0x2BFF), (0x1F300, 0x1FAFF), (0x0300, 0x036F),
)  # fmt: skip
_PIECES = (
    "<img>a.png</img>", "</img>", "<ref>", "</ref>", "<box>", "</box>", "<|im_start|>",
    "<|im_end|>", "(12,345)", "\n", "  ", "Picture 1: ", "answer", "回答", "0.5", "don't",
)  # fmt: skip
STRINGS = 2048


def tokenizer_strings(seed: int, count: int = STRINGS) -> list[str]:
    """Strings that both tokenizers must agree on: the tricky ones, then seeded mixtures."""
    words = PCG64([seed, 0x70CE])

    def below(limit: int) -> int:
        return int(words.random_raw()) % limit

    found = dict.fromkeys(TRICKY_STRINGS)  # every string once, in order
    while len(found) < count:
        parts = []
        for _ in range(1 + below(6)):
            if below(3) == 0:
                parts.append(_PIECES[below(len(_PIECES))])
                continue
            low, high = _RANGES[below(len(_RANGES))]
            parts.append("".join(chr(low + below(high - low + 1)) for _ in range(1 + below(12))))
        found["".join(parts)] = None
    return list(found)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: what is shown and asked, and the box that is looked for, if any."""

    key: str
    language: Language
    kind: str
    elements: Elements
    history: tuple[tuple[str | Elements, str], ...]
    target: str | None = None  # what a grounding question asks for, in words
    truth: Box | None = None  # where it is, in thousandths
    answer: str | None = None  # the right answer, where there is one
    group: str = ""  # probes that show the same picture share it; statistics draw whole groups

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of all turns, in reading order."""
        shown = [query for query, _ in self.history if not isinstance(query, str)]
        return tuple(
            value
            for elements in (*shown, self.elements)
            for element in elements
            for value in element.values()
            if isinstance(value, Image.Image)
        )

    @property
    def question(self) -> str:
        """The text of the last turn."""
        return _text_of(self.elements)

    @property
    def told(self) -> str:
        """The text of all turns, a line each."""
        turns = [
            f"{query if isinstance(query, str) else _text_of(query)}\n{answer}"
            for query, answer in self.history
        ]
        return "\n".join((*turns, self.question))


def _text_of(elements: Elements) -> str:
    values = (value for element in elements for value in element.values())
    return " ".join(value for value in values if isinstance(value, str))


def make_probes(seed: int, count: int) -> list[Probe]:
    """Make the probes of a seed; a longer list starts with the shorter one's.

    Scenes are of the test split, which shares no seed with calibration or training.
    """
    half = count // 2 + 1
    grounding = samples(seed, half, split="test", kinds=_BOXED)
    others = samples(seed, 2 * half, split="test", kinds=_OTHERS)
    talk = samples(seed, half, split="test", kinds=("small talk",))
    spoken = _text_questions(seed)
    probes = []
    for index in range(count):
        turn = index % _ROUND
        if turn == 0:
            probes.append(_sample_probe(index, next(grounding)))
        elif turn < _ROUND - 1:
            probes.append(_sample_probe(index, next(others)))
        elif index // _ROUND % 2:
            probes.append(_sample_probe(index, next(talk)))
        else:
            probes.append(_text_probe(index, next(spoken)))
    return probes


def _sample_probe(index: int, sample: Sample) -> Probe:
    grounded = _GROUNDED.fullmatch(sample.answer)
    return Probe(
        key=f"probe-{index:03d}",
        language=sample.language,
        kind="text" if sample.kind == "small talk" else sample.kind,
        elements=sample.elements,
        history=sample.history,
        target=grounded[1] if grounded and sample.box else None,
        truth=sample.box,
        answer=sample.answer,
        group=_picture_key(sample),
    )


def _picture_key(sample: Sample) -> str:
    total = hashlib.sha256()
    for image in sample.images:
        total.update(image.convert("RGB").tobytes())
    if not sample.images:  # what is asked again counts once
        total.update(sample.question.encode())
    return total.hexdigest()[:16]


def _text_probe(index: int, question: tuple[Language, str]) -> Probe:
    language, text = question
    group = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Probe(f"probe-{index:03d}", language, "text", ({"text": text},), (), group=group)


def _text_questions(seed: int) -> Iterator[tuple[Language, str]]:
    """Yield questions for ever; languages take turns, and repeats come as late as they can."""
    languages: tuple[Language, ...] = ("en", "zh")
    every = {
        language: _shuffled(
            [
                template.format(one, two)
                for template in _TEMPLATES[language]
                for one, two in zip(
                    _SUBJECTS[language],
                    _SUBJECTS[language][1:] + _SUBJECTS[language][:1],
                    strict=True,
                )
            ],
            seed,
        )
        for language in languages
    }
    index = 0
    while True:
        for language in languages:
            questions = every[language]
            yield language, questions[index % len(questions)]
        index += 1


def _shuffled(items: list[str], seed: int) -> list[str]:
    # raw words are the part of numpy's generators whose stream is promised
    words = PCG64([seed, 0x7E57])
    return [item for _, item in sorted((int(words.random_raw()), item) for item in items)]

"""Conversations as the model reads them, cut into a prefix with pictures and questions after it.

The pieces are those of `qwen_vl.dialogue`: a prefix and a question together are exactly the ids of
the prompt that `chat` makes, so what is learned here is what is asked there.
"""

from __future__ import annotations

from dataclasses import dataclass

import tiktoken

from qwen_vl.dialogue import DEFAULT_SYSTEM
from qwen_vl.ranks import END_OF_TEXT, IM_END, IM_START, IMAGE_TAGS, IMG_END, IMG_PAD, IMG_START
from qwen_vl.scene_tasks import Question
from scripts.tiny_model import IMAGE_TOKENS

SPAN = f"{IMG_START}{IMG_PAD * IMAGE_TOKENS}{IMG_END}"
_YES_OR_NO = " Please answer yes or no."


@dataclass(frozen=True, slots=True)
class Asked:
    """A question behind a prefix: ids, and which of them are to be learned."""

    kind: str
    ids: tuple[int, ...]
    learned: tuple[bool, ...]


class Writer:
    """Writes prefixes and questions with one encoding."""

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.encoding = encoding
        self._tags = set(IMAGE_TAGS)
        self.pad_id = encoding.encode_single_token(IMG_PAD)
        self._user = self._ids(f"\n{IM_START}user\n", all_special=True)
        self._reply = self._ids(f"{IM_END}\n{IM_START}assistant\n", all_special=True)
        self._end = encoding.encode_single_token(IM_END)
        self._stop = encoding.encode_single_token(END_OF_TEXT)

    def chat_prefix(self, images: int, *, labelled: bool) -> list[int]:
        """System text, and the user's turn up to the text behind the pictures."""
        system = self._ids(f"{IM_START}system\n{DEFAULT_SYSTEM}{IM_END}", all_special=True)
        shown: list[int] = []
        for number in range(1, images + 1):
            shown += self._ids(f"Picture {number}: " if labelled else "")
            shown += self._ids(SPAN) + self._ids("\n")
        return [*system, *self._user, *shown]

    def plain_prefix(self) -> list[int]:
        """A picture alone, as the evaluation scripts of 2023 prompt."""
        return self._ids(SPAN)

    def chat(self, question: Question, *, yes_or_no: bool = False) -> Asked:
        """The question's turns; every answer and its end are learned."""
        ids: list[int] = []
        learned: list[bool] = []
        text = question.text + (_YES_OR_NO if yes_or_no else "")
        for number, (asked, answer) in enumerate((*question.earlier, (text, question.answer))):
            opening = [self._end, *self._user] if number else []
            prompt = [*opening, *self._ids(asked), *self._reply]
            told = self._ids(answer)
            ids += [*prompt, *told]
            learned += [False] * len(prompt) + [True] * len(told)
            if number:
                learned[len(ids) - len(prompt) - len(told)] = True  # the earlier answer's end
        return Asked(question.kind, (*ids, self._end), (*learned, True))

    def plain(self, question: Question) -> Asked | None:
        """The question in the words of the evaluation scripts; None where they have no form."""
        text, answer = question.text, f" {question.answer}"
        if question.kind == "grounding" and question.language == "en":
            ref, _, box = question.answer.partition("<box>")
            text, answer = f"{ref.replace('<ref>the ', '<ref>')}<box>", box
        elif question.kind == "choice" and question.language == "en":
            asked, *options, _ = question.text.split("\n")
            listed = "\n".join(options)
            text = f"Context: N/A\nQuestion: {asked}\nOptions: {listed}\nAnswer:"
        elif question.kind in ("grounding", "dialogue", "choice"):
            return None
        elif question.kind != "caption":
            text = f"{question.text} Answer:"
        elif not question.text.endswith(":"):
            return None
        prompt, told = self._ids(text), self._ids(answer)
        learned = [False] * len(prompt) + [True] * (len(told) + 1)
        return Asked(f"{question.kind}, plain", (*prompt, *told, self._stop), tuple(learned))

    def _ids(self, text: str, *, all_special: bool = False) -> list[int]:
        return self.encoding.encode(text, allowed_special="all" if all_special else self._tags,
                                    disallowed_special=())  # fmt: skip

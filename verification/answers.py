"""One loaded snapshot that answers probes: greedily, under the box grammar, and scored.

Image tokens and ids without a text are never chosen, on either side: an answer that holds half an
image span could not be fed back to be scored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_vl.dialogue import chat_inputs
from verification.boxes import allowed_box_text, grammar_tokens, is_whole_box, read_boxes
from verification.errors import NotFiniteError
from verification.evidence import Answer
from verification.probes import Box, Probe

_MOST_BOX_TOKENS = 24  # longer than "(999,999),(999,999)" in single characters


@dataclass(frozen=True, slots=True)
class Prompt:
    """A probe as one side's model takes it."""

    input_ids: Tensor  # (1, positions)
    pixel_values: Tensor | None


class Speaker:
    """A model with its tokenizer; float32 on the processor, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        from qwen_vl.loading import load_model, load_processor

        self.name = folder.name
        self.model: Any = load_model(folder, dtype=torch.float32, device="cpu")
        self.processor: Any = load_processor(folder)
        self.tokenizer: Any = self.processor.tokenizer
        vision: Any = self.model.config.vision_config
        self.image_size: int = vision.image_size
        self._stops = frozenset(
            (self.tokenizer.eod_id, self.tokenizer.im_start_id, self.tokenizer.im_end_id)
        )
        self._banned = self._ban()
        ranks = range(self.tokenizer.n_ranks)
        self._box_tokens = grammar_tokens(self.tokenizer.convert_ids_to_tokens(ranks))

    def _ban(self) -> Tensor:
        banned = torch.zeros(self.model.config.text_config.vocab_size, dtype=torch.bool)
        banned[len(self.tokenizer) :] = True
        for tag in ("<img>", "</img>", "<imgpad>"):
            banned[self.tokenizer.special_ids[tag]] = True
        return banned

    def prompt(self, probe: Probe) -> Prompt:
        """Put a probe in the chat format, images preprocessed by this snapshot's processor."""
        inputs = chat_inputs(
            self.tokenizer,
            list(probe.elements),
            image_size=self.image_size,
            history=list(probe.history),
        )
        pixels = None
        if inputs.images:
            pixels = self.processor.image_processor.preprocess(list(inputs.images))["pixel_values"]
            pixels = torch.as_tensor(pixels)
        return Prompt(torch.tensor([inputs.input_ids]), pixels)

    @torch.inference_mode()
    def answer(
        self, prompt: Prompt, new_tokens: int, target: str | None
    ) -> tuple[Answer, Box | None]:
        """Answer greedily, and give the box of `target` when there is one."""
        first = self._run(prompt.input_ids, prompt.pixel_values, None, prompt.input_ids.shape[1])
        box = None
        if target is not None:
            box = self._box(prompt, target, copy.deepcopy(first.past_key_values))
        return self._greedy(prompt, first, new_tokens), box

    @torch.inference_mode()
    def score(self, prompt: Prompt, ids: Sequence[int]) -> Tensor:
        """Logits (len(ids), vocabulary) that predict `ids` after the prompt, in one forward.

        Raises:
            NotFiniteError: the model is broken.
        """
        fed = torch.cat((prompt.input_ids, torch.tensor([list(ids[:-1])], dtype=torch.long)), 1)
        out = self._run(fed, prompt.pixel_values, None, fed.shape[1], keep=len(ids))
        logits: Tensor = out.logits[0].float()
        if not torch.isfinite(logits).all():
            raise NotFiniteError(f"{self.name} answers with logits that are not finite")
        return logits

    @torch.inference_mode()
    def tail(self, prompt: Prompt, last: int) -> Tensor:
        """Logits (last, vocabulary) of the prompt's own last positions."""
        length = prompt.input_ids.shape[1]
        out = self._run(prompt.input_ids, prompt.pixel_values, None, length, keep=last)
        logits: Tensor = out.logits[0].float()
        return logits

    def _run(
        self, ids: Tensor, pixels: Tensor | None, past: Any, length: int, *, keep: int = 1
    ) -> Any:
        return self.model(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones(1, length, dtype=torch.long),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=keep,
        )

    def _greedy(self, prompt: Prompt, out: Any, new_tokens: int) -> Answer:
        length = prompt.input_ids.shape[1]
        ids: list[int] = []
        margins: list[float] = []
        while True:
            logits = out.logits[0, -1].float().masked_fill(self._banned, -torch.inf)
            best = logits.topk(2)
            ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            if ids[-1] in self._stops or len(ids) == new_tokens:
                break
            out = self._step(ids[-1], out.past_key_values, length + len(ids))
        return Answer(tuple(ids), self._text(ids), tuple(margins))

    def _step(self, token: int, past: Any, length: int) -> Any:
        return self._run(torch.tensor([[token]]), None, past, length)

    def _text(self, ids: Sequence[int]) -> str:
        spoken = ids[:-1] if ids[-1] in self._stops else ids
        return self.tokenizer.decode(list(spoken), literal=True) if spoken else ""

    def _box(self, prompt: Prompt, target: str, past: Any) -> Box | None:
        """Ask for `<ref>target</ref><box>` and follow the grammar to its end."""
        opening = self.tokenizer.encode(f"<ref>{target}</ref><box>")
        length = prompt.input_ids.shape[1] + len(opening)
        out = self._run(torch.tensor([opening]), None, past, length)
        text = ""
        for _ in range(_MOST_BOX_TOKENS):
            logits = out.logits[0, -1].float()
            token = self._next_of_box(logits, text)
            if token is None:
                break
            text += self._box_tokens[token]
            if is_whole_box(text):
                break
            length += 1
            out = self._step(token, out.past_key_values, length)
        boxes = read_boxes(text)
        return boxes[0] if boxes else None

    def _next_of_box(self, logits: Tensor, text: str) -> int | None:
        allowed = [i for i, piece in self._box_tokens.items() if allowed_box_text(text + piece)]
        return max(allowed, key=lambda i: float(logits[i])) if allowed else None

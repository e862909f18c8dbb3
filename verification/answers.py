"""One loaded snapshot that answers probes in batches: greedily, under the box grammar, and forced.

A batch goes through the model once. Its cache then serves three ends in turn, cut back to the
prompts in between: the greedy answers, the forced ones (teacher forcing), and the boxes. What is
kept of a forced answer are the last hidden states; logits are made from them by whoever compares.

Image tokens and ids without a text are never chosen, on either side: an answer that holds half an
image span could not be fed back to be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_vl.dialogue import chat_inputs
from qwen_vl.helper_revision import helper_revision
from verification.boxes import allowed_box_text, grammar_tokens, is_whole_box, read_boxes
from verification.errors import NotFiniteError
from verification.evidence import Answer
from verification.probes import Box, Probe

_MOST_BOX_TOKENS = 24  # longer than "(999,999),(999,999)" in single characters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A probe as one side's model takes it."""

    input_ids: tuple[int, ...]
    pixel_values: Tensor | None  # (images, 3, side, side) float32


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said to one probe."""

    answer: Answer
    hidden: Tensor  # (len(forced), hidden) float32: the states that predict the forced answer
    box: Box | None  # under the grammar, when the probe asks for one


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in what numbers a model runs."""

    dtype: str = "float32"
    device: str = "cpu"


@dataclass(slots=True)
class _Prefilled:
    """A batch whose prompts are in the cache."""

    cache: Any
    mask: Tensor  # (rows, positions), zero at padding on the left
    last: Tensor  # (rows, 1, hidden): the state that predicts the first answer token

    def cut_back(self) -> None:
        """Forget what came after the prompts."""
        longer = self.cache.get_seq_length() - self.mask.shape[1]
        if longer > 0:
            self.cache.crop(-longer)


class Speaker:
    """A model with its tokenizer and image processor."""

    def __init__(self, folder: Path, place: Place | None = None) -> None:
        from qwen_vl.loading import load_model, load_processor, load_tokenizer

        place = place or Place()
        self.name = folder.name
        self.device = torch.device(place.device)
        self.model: Any = load_model(folder, dtype=DTYPES[place.dtype], device=self.device)
        self.processor: Any = load_processor(folder)
        self.tokenizer: Any = load_tokenizer(folder, style=helper_revision(folder))
        vision: Any = self.model.config.vision_config
        self.image_size: int = vision.image_size
        self._stops = frozenset(
            (self.tokenizer.eod_id, self.tokenizer.im_start_id, self.tokenizer.im_end_id)
        )
        self._banned = self._ban()
        ranks = range(self.tokenizer.n_ranks)
        tokens: list[Any] = list(self.tokenizer.convert_ids_to_tokens(ranks))
        self._box_tokens = grammar_tokens(tokens)
        self._allowed: dict[str, list[int]] = {}

    def _ban(self) -> Tensor:
        banned = torch.zeros(self.model.config.text_config.vocab_size, dtype=torch.bool)
        banned[len(self.tokenizer) :] = True
        for tag in ("<img>", "</img>", "<imgpad>"):
            banned[self.tokenizer.special_ids[tag]] = True
        return banned.to(self.device)

    def prompt(self, probe: Probe) -> Prompt:
        """Put a probe in the chat format, images preprocessed by this snapshot's processor."""
        inputs = chat_inputs(
            self.tokenizer,
            list(probe.elements),
            image_size=self.image_size,
            history=[(q if isinstance(q, str) else list(q), said) for q, said in probe.history],
        )
        pixels = None
        if inputs.images:
            made = self.processor.image_processor.preprocess(list(inputs.images))["pixel_values"]
            pixels = torch.as_tensor(made)
        return Prompt(tuple(inputs.input_ids), pixels)

    @torch.inference_mode()
    def converse(
        self,
        prompts: Sequence[Prompt],
        *,
        new_tokens: int,
        forced: Sequence[Sequence[int]] | None = None,
        targets: Sequence[str] | None = None,
    ) -> list[Said]:
        """Answer a batch of prompts, and run the forced answers behind the same prompts.

        Args:
            prompts: one or more.
            new_tokens: most tokens of a greedy answer.
            forced: an answer per prompt, not empty; None for the greedy ones themselves.
            targets: what a box is asked of, per prompt; None for no boxes.

        Raises:
            NotFiniteError: the model is broken.
        """
        filled = self._prefill(prompts)
        answers = self._greedy(filled, new_tokens)
        filled.cut_back()
        wanted = forced if forced is not None else [answer.ids for answer in answers]
        hidden = self._forced(filled, wanted)
        boxes: list[Box | None] = [None] * len(prompts)
        if targets is not None:
            filled.cut_back()
            boxes = self._boxes(filled, targets)
        return [Said(*said) for said in zip(answers, hidden, boxes, strict=True)]

    @torch.inference_mode()
    def force(self, prompts: Sequence[Prompt], forced: Sequence[Sequence[int]]) -> list[Tensor]:
        """The hidden states that predict given answers; nothing is generated."""
        return self._forced(self._prefill(prompts), forced)

    @torch.inference_mode()
    def tail(self, prompt: Prompt, last: int) -> Tensor:
        """The model's own logits (last, vocabulary) at the prompt's last positions, float32."""
        out = self.model(
            input_ids=torch.tensor([prompt.input_ids], device=self.device),
            pixel_values=self._placed(prompt.pixel_values),
            use_cache=False,
            logits_to_keep=last,
        )
        logits: Tensor = out.logits[0].float().cpu()
        if not torch.isfinite(logits).all():
            raise NotFiniteError(f"{self.name} answers with logits that are not finite")
        return logits

    def _placed(self, pixels: Tensor | None) -> Tensor | None:
        return None if pixels is None else pixels.to(self.device)

    def _prefill(self, prompts: Sequence[Prompt]) -> _Prefilled:
        rows, longest = len(prompts), max(len(prompt.input_ids) for prompt in prompts)
        ids = torch.full((rows, longest), self.tokenizer.eod_id, dtype=torch.long)
        mask = torch.zeros(rows, longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.input_ids) :] = torch.tensor(prompt.input_ids)
            mask[row, longest - len(prompt.input_ids) :] = 1
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        mask = mask.to(self.device)
        out = self._run(ids.to(self.device), mask, None, torch.cat(pixels) if pixels else None)
        return _Prefilled(out.past_key_values, mask, self._finite(out.last_hidden_state[:, -1:]))

    def _run(self, ids: Tensor, mask: Tensor, cache: Any, pixels: Tensor | None = None) -> Any:
        return self.model.model(
            input_ids=ids,
            pixel_values=self._placed(pixels),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )

    def _finite(self, hidden: Tensor) -> Tensor:
        if not torch.isfinite(hidden).all():
            raise NotFiniteError(f"{self.name} computes states that are not finite")
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """(rows, 1, hidden) -> (rows, vocabulary) float32."""
        logits: Tensor = self.model.lm_head(hidden)[:, -1].float()
        if not torch.isfinite(logits).all():
            raise NotFiniteError(f"{self.name} answers with logits that are not finite")
        return logits

    def _greedy(self, filled: _Prefilled, new_tokens: int) -> list[Answer]:
        rows = len(filled.mask)
        ids: list[list[int]] = [[] for _ in range(rows)]
        margins: list[list[float]] = [[] for _ in range(rows)]
        open_rows, hidden, mask = set(range(rows)), filled.last, filled.mask
        while True:
            best = self._logits(hidden).masked_fill(self._banned, -torch.inf).topk(2)
            gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
            tokens = best.indices[:, :1]
            for row, token in enumerate(tokens[:, 0].tolist()):
                if row in open_rows:
                    ids[row].append(token)
                    margins[row].append(gaps[row])
                    if token in self._stops or len(ids[row]) == new_tokens:
                        open_rows.remove(row)
            if not open_rows:
                break
            # a row that is done goes on unheard: rows do not see each other
            mask = torch.cat((mask, mask.new_ones(rows, 1)), 1)
            hidden = self._run(tokens, mask, filled.cache).last_hidden_state
        return [
            Answer(tuple(said), self._text(said), tuple(gap), self._starts(said))
            for said, gap in zip(ids, margins, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        spoken = ids[:-1] if ids[-1] in self._stops else ids
        return self.tokenizer.decode(list(spoken), literal=True) if spoken else ""

    def _starts(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The character at which each token begins; one may begin inside a character."""
        so_far, found = b"", []
        for token in self.tokenizer.convert_ids_to_tokens(list(ids)):
            found.append(len(so_far.decode("utf-8", "ignore")))
            so_far += token if isinstance(token, bytes) else str(token).encode()
        return tuple(found)

    def _forced(self, filled: _Prefilled, forced: Sequence[Sequence[int]]) -> list[Tensor]:
        rows, longest = len(forced), max(len(ids) for ids in forced) - 1
        states = filled.last
        if longest:
            fed = filled.mask.new_full((rows, longest), self.tokenizer.eod_id)
            for row, ids in enumerate(forced):
                # padded on the right, where no real token looks
                fed[row, : len(ids) - 1] = torch.tensor(ids[:-1], dtype=torch.long)
            mask = torch.cat((filled.mask, torch.ones_like(fed)), 1)
            later = self._run(fed, mask, filled.cache).last_hidden_state
            states = torch.cat((states, later), 1)
        return [
            self._finite(state[: len(ids)]).float().cpu()
            for state, ids in zip(states, forced, strict=True)
        ]

    def _boxes(self, filled: _Prefilled, targets: Sequence[str]) -> list[Box | None]:
        """Ask for `<ref>target</ref><box>` and follow the grammar to its end, row by row."""
        openings = [self.tokenizer.encode(f"<ref>{target}</ref><box>") for target in targets]
        rows, longest = len(openings), max(map(len, openings))
        fed = filled.mask.new_full((rows, longest), self.tokenizer.eod_id)
        seen = torch.zeros_like(fed)
        for row, ids in enumerate(openings):
            # padded on the left, behind the prompt: the mask keeps the gap out of sight
            fed[row, longest - len(ids) :] = torch.tensor(ids)
            seen[row, longest - len(ids) :] = 1
        mask = torch.cat((filled.mask, seen), 1)
        hidden = self._run(fed, mask, filled.cache).last_hidden_state[:, -1:]
        texts = [""] * rows
        for _ in range(_MOST_BOX_TOKENS):
            chosen = [
                self._next_of_box(row, text)
                for row, text in zip(self._logits(hidden), texts, strict=True)
            ]
            for row, token in enumerate(chosen):
                if token is not None:
                    texts[row] += self._box_tokens[token]
            if all(token is None or is_whole_box(texts[row]) for row, token in enumerate(chosen)):
                break
            step = fed.new_tensor([[self.tokenizer.eod_id if t is None else t] for t in chosen])
            mask = torch.cat((mask, mask.new_ones(rows, 1)), 1)
            hidden = self._run(step, mask, filled.cache).last_hidden_state
        found = [read_boxes(text) for text in texts]
        return [boxes[0] if boxes else None for boxes in found]

    def _next_of_box(self, logits: Tensor, text: str) -> int | None:
        if is_whole_box(text):
            return None
        allowed = self._allowed.get(text)
        if allowed is None:
            allowed = [i for i, piece in self._box_tokens.items() if allowed_box_text(text + piece)]
            self._allowed[text] = allowed
        return allowed[int(logits[allowed].argmax())] if allowed else None

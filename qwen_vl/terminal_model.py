"""The model behind the terminal chat."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qwen_vl.boxes import Turn, draw_on_latest_picture
from qwen_vl.chat_options import ChatOptions
from qwen_vl.image_fetching import HttpRules
from qwen_vl.image_sources import open_image
from qwen_vl.image_text_tokenizer import ImageTextTokenizer
from qwen_vl.loading import load_model, load_tokenizer
from qwen_vl.placement import Placement
from qwen_vl.streaming import chat_stream


@dataclass(slots=True)
class ModelSession:
    """One conversation; pictures are opened when they are named, once."""

    model: Any
    tokenizer: ImageTextTokenizer
    options: ChatOptions
    history: list[Turn] = field(default_factory=list)
    pending: list[Image.Image] = field(default_factory=list)
    drawn: int = 0

    def add_image(self, source: str) -> str:
        """Open a picture for the next question.

        Raises:
            ImageError: it cannot be opened, or is an address and those are not allowed.
        """
        rules = HttpRules() if self.options.allow_http else None
        image = open_image(source, http=rules)
        self.pending.append(image)
        return f"{image.width}x{image.height}"

    def draw(self) -> Path | None:
        """Draw the last answer's boxes.

        Raises:
            MalformedBoxError, MalformedTextError: an answer that cannot be read.
        """
        answer = self.history[-1][1] if self.history else None
        drawing = None if not answer else draw_on_latest_picture(answer, self.history)
        if drawing is None:
            return None
        self.options.boxes.mkdir(parents=True, exist_ok=True)
        path = self._free_name()
        drawing.save(path)
        return path

    def _free_name(self) -> Path:
        while True:
            self.drawn += 1
            path = self.options.boxes / f"boxes-{self.drawn}.png"
            if not path.exists():
                return path

    def reset(self) -> None:
        """Forget everything said and shown."""
        self.history, self.pending = [], []

    def ask(self, text: str) -> Generator[str]:
        """Ask, with the pictures that wait; only a finished answer enters the conversation.

        Raises:
            ImageNotAllowedError: the text holds an `<img>` of its own.
        """
        elements: list[dict[str, Any]] = [
            *({"image": image} for image in self.pending),
            {"text": text},
        ]
        query = self.tokenizer.from_list_format(elements)
        answer = ""
        for answer in chat_stream(
            self.model,
            self.tokenizer,
            query,
            history=self.history,
            system=self.options.system,
            max_new_tokens=self.options.max_new_tokens,
            **({"do_sample": False} if self.options.greedy else {}),
        ):
            yield answer
        self.history.append((query, answer))
        self.pending = []


def open_session(options: ChatOptions) -> ModelSession:
    """Load model and tokenizer.

    Raises:
        ModelError, RankFileError, CheckpointError: the folder cannot be used.
    """
    if options.seed is not None:
        torch.manual_seed(options.seed)
    dtype = None if options.dtype == "auto" else options.dtype
    model = load_model(options.folder, dtype=dtype, placement=Placement(options.device))
    return ModelSession(model, load_tokenizer(options.folder), options)

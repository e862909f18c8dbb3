"""What serving engines ask of a processor: one placeholder token per picture, and where it went.

vLLM and SGLang write `<imgpad>` where a picture belongs, and let the processor say by what text
that token is replaced. Here it is `<img></img>`, which encodes to a whole block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.processing_utils import MultiModalData

from qwen_vl.ranks import IMG_END, IMG_PAD, IMG_START


class PlaceholderProcessor:
    """Mixed into a ProcessorMixin whose tokenizer is Qwen-VL's."""

    tokenizer: Any
    image_token = IMG_PAD  # one id; no start and end token beside it, which engines would add

    @property
    def image_token_id(self) -> int:
        """The id that the rows of a picture stand at."""
        found: int = self.tokenizer.special_ids[IMG_PAD]
        return found

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """The text that stands for a picture: the same for every one."""
        return IMG_START + IMG_END

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> MultiModalData:
        """How many rows pictures of these sizes take, and how many pixel_values: one each."""
        if image_sizes is None:
            return MultiModalData()
        rows = self.tokenizer.n_image_tokens
        return MultiModalData(
            num_image_tokens=[rows] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def expanded(self, texts: list[str], images: Any) -> tuple[list[str], list[list[Any]]]:
        """Replace placeholders, if with them there are as many blocks as pictures.

        Args:
            texts: one per row; those that bring their own pictures are left alone.
            images: the pictures, nested or flat.

        Returns:
            The texts, and for each the places of its placeholders before and after.
        """
        written = sum(text.count(IMG_START) for text in texts)
        places = [text.count(IMG_PAD) if type(text) is str else 0 for text in texts]
        pictures = _count(images)
        if not sum(places) or written + sum(places) != pictures:
            return texts, [[] for _ in texts]
        made, offsets = self.get_text_with_replacements(  # type: ignore[attr-defined]  # ProcessorMixin's
            [text if here else "" for text, here in zip(texts, places, strict=True)],
            images_replacements=[self.replace_image_token({}, n) for n in range(sum(places))],
        )
        rows = zip(texts, made, places, strict=True)
        return [new if here else old for old, new, here in rows], offsets

    def create_mm_token_type_ids(self, input_ids: Any) -> list[list[int]]:
        """1 where a picture's rows stand, 0 elsewhere; path bytes in a block count as well."""
        start, end = (self.tokenizer.special_ids[tag] for tag in (IMG_START, IMG_END))
        kinds = []
        for row in input_ids:
            ids = np.asarray(row)
            depth = np.cumsum(ids == start) - np.cumsum(ids == end)
            kinds.append(((depth > 0) & (ids != start)).astype(int).tolist())
        return kinds


def _count(images: Any) -> int:
    if images is None:
        return 0
    return sum(map(_count, images)) if isinstance(images, list | tuple) else 1

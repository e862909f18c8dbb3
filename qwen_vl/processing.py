"""Text and pictures to what the model takes: input_ids, attention_mask, pixel_values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from qwen_vl.errors import ImageBlockError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.ranks import END_OF_TEXT, IMG_END, IMG_PAD, IMG_START
from qwen_vl.tokenization import QwenVLTokenizer


class QwenVLProcessor(ProcessorMixin):
    """Every `<img>…</img>` of the text is one picture; what stands inside opens no file.

    Rows of a batch are padded on the left with <|endoftext|>, and the mask says so.
    """

    def __init__(
        self,
        image_processor: QwenVLImageProcessor,
        tokenizer: QwenVLTokenizer,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            image_processor, tokenizer, chat_template=chat_template, **kwargs
        )
        self.image_token = IMG_PAD
        self.image_start_token, self.image_end_token = IMG_START, IMG_END
        if tokenizer.pad_token is None:
            tokenizer.pad_token = END_OF_TEXT
        tokenizer.padding_side = "left"

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        allowed_special: Any = "all",
        **_: Any,
    ) -> BatchFeature:
        """Prepare one text or a batch.

        Args:
            images: the pictures in reading order over the rows, nested or flat; paths, bytes, data
                URLs or Pillow images. None for text alone, or for a text from `from_list_format`,
                which brings its own.
            text: one text, or one per row; each picture stands in it as `<img>label</img>`.
            return_tensors: "pt", or None for lists.
            allowed_special: which control tokens are recognised in the text, as in `encode`.

        Raises:
            ImageBlockError: another number of pictures than blocks.
            ImageError: a picture that cannot be opened.
        """
        data: dict[str, Any] = {}
        blocks = None
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            rows = [self.tokenizer.encode(one, allowed_special=allowed_special) for one in texts]
            blocks = sum(row.count(self.tokenizer.special_ids[IMG_START]) for row in rows)
            data |= _padded(rows, self.tokenizer.pad_token_id)
            if images is None:
                images = [source.image for one in texts for source in getattr(one, "images", ())]
        if images is not None:
            data |= self.image_processor.preprocess(images)
            if len(data["pixel_values"]) == 0:
                del data["pixel_values"]
        _check_count(blocks, len(data.get("pixel_values", ())))
        if return_tensors is None:
            return BatchFeature({key: torch.as_tensor(data[key]).tolist() for key in data})
        return BatchFeature(data, tensor_type=return_tensors)


def _padded(rows: list[list[int]], pad: int) -> dict[str, list[list[int]]]:
    width = max((len(row) for row in rows), default=0)
    missing = [width - len(row) for row in rows]
    return {
        "input_ids": [[pad] * gap + row for gap, row in zip(missing, rows, strict=True)],
        "attention_mask": [
            [0] * gap + [1] * len(row) for gap, row in zip(missing, rows, strict=True)
        ],
    }


def _check_count(blocks: int | None, pictures: int) -> None:
    if blocks is not None and blocks != pictures:
        raise ImageBlockError(
            f"the text has {blocks} <img> blocks, and there are {pictures} pictures",
            hint="Pass one picture for each <img>…</img>, in reading order.",
        )

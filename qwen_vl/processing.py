"""Text and pictures to what the model takes: input_ids, attention_mask, pixel_values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from qwen_vl.chat_template import (
    CHAT_TEMPLATE,
    PromptText,
    is_batch,
    refuse_other_template,
    render,
)
from qwen_vl.errors import ImageBlockError
from qwen_vl.image_fetching import HttpRules
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.image_settings import image_settings
from qwen_vl.image_sources import ImageSource, is_url, open_image
from qwen_vl.image_text_tokenizer import AllowedSpecial
from qwen_vl.placeholders import PlaceholderProcessor
from qwen_vl.ranks import END_OF_TEXT, IMAGE_TAGS, IMG_START
from qwen_vl.tokenization import QwenVLTokenizer


class QwenVLProcessor(PlaceholderProcessor, ProcessorMixin):
    """Every `<img>…</img>` of the text is one picture; what stands inside opens no file.

    Rows of a batch are padded on the left with <|endoftext|>, and the mask says so. Control tokens
    in a text are plain text, but for those that `apply_chat_template` itself wrote; who trusts
    every text, as a server does that renders prompts elsewhere, sets `allowed_special="all"`.
    """

    def __init__(
        self,
        image_processor: QwenVLImageProcessor,
        tokenizer: QwenVLTokenizer,
        chat_template: str | None = None,
        allowed_special: AllowedSpecial = IMAGE_TAGS,
        **kwargs: Any,
    ) -> None:
        # a template of the folder is kept for others and never run here
        chat_template = chat_template or CHAT_TEMPLATE
        self.allowed_special = allowed_special
        super().__init__(  # type: ignore[no-untyped-call]
            image_processor, tokenizer, chat_template=chat_template, **kwargs
        )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = END_OF_TEXT
        tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(  # type: ignore[override]  # theirs spells the options out
        cls, folder: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as every processor, and from a folder of 2023 too, which has no file for one.

        Raises:
            ConfigError: a folder of 2023 whose config.json does not say the image size.
        """
        place = Path(folder)
        files = ("preprocessor_config.json", "processor_config.json")
        if (place / "config.json").is_file() and not any((place / f).is_file() for f in files):
            side = image_settings(place)["image_size"]
            image_processor = QwenVLImageProcessor(size={"height": side, "width": side})
            return cls(image_processor, QwenVLTokenizer.from_pretrained(folder))
        return super().from_pretrained(folder, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        allowed_special: AllowedSpecial | None = None,
        allow_http: bool | HttpRules = False,
        return_mm_token_type_ids: bool = False,
        return_text_replacement_offsets: bool = False,
        **_: Any,
    ) -> BatchFeature:
        """Prepare one text or a batch.

        Args:
            images: the pictures in reading order over the rows, nested or flat; paths, bytes, data
                URLs or Pillow images. None for text alone, or for a text from `from_list_format`,
                which brings its own.
            text: one text, or one per row; each picture stands in it as `<img>label</img>`, or as
                the placeholder `<imgpad>`.
            return_tensors: "pt", or None for lists.
            allowed_special: which special tokens are recognised in the text, as in `encode`; by
                default those of images and boxes.
            allow_http: whether, or under which rules, images are fetched by address.
            return_mm_token_type_ids: give `mm_token_type_ids` too, 1 at the rows of pictures.
            return_text_replacement_offsets: give `text_replacement_offsets` too, where the
                placeholders stood.

        Raises:
            ImageBlockError: another number of pictures than blocks.
            ImageError: a picture that cannot be opened.
        """
        data: dict[str, Any] = {}
        blocks, offsets = None, None
        if text is not None:
            texts, offsets = self.expanded([text] if isinstance(text, str) else list(text), images)
            special = self.allowed_special if allowed_special is None else allowed_special
            rows = [_ids(self.tokenizer, one, special) for one in texts]
            blocks = sum(row.count(self.tokenizer.special_ids[IMG_START]) for row in rows)
            data |= _padded(rows, self.tokenizer.pad_token_id)
            if return_mm_token_type_ids:
                data["mm_token_type_ids"] = self.create_mm_token_type_ids(data["input_ids"])
            if images is None:
                images = [image for one in texts for image in _images_of(one)]
        if images is not None:
            opened = _opened(images, HttpRules() if allow_http is True else allow_http or None)
            data |= self.image_processor.preprocess(opened)
            if len(data["pixel_values"]) == 0:
                del data["pixel_values"]
        _check_count(blocks, len(data.get("pixel_values", ())))
        if return_tensors is None:
            made = BatchFeature({key: torch.as_tensor(data[key]).tolist() for key in data})
        else:
            made = BatchFeature(data, tensor_type=return_tensors)
        if return_text_replacement_offsets and offsets is not None:
            made["text_replacement_offsets"] = offsets
        return made

    def apply_chat_template(  # type: ignore[override]  # fewer ways to be asked
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_tensors: str | None = "pt",
        allow_http: bool | HttpRules = False,
        **_: Any,
    ) -> Any:
        """Lay messages out as prompts; see `chat_template.render`.

        Args:
            conversation: messages, or a list of such lists.
            chat_template: not taken: another template could not be guarded.
            tokenize: give ids instead of text. The text keeps its ids and pictures, for `__call__`.
            return_dict: with `tokenize`, give pixel_values and mask too.
            add_generation_prompt: end where the assistant speaks.
            continue_final_message: leave the last message open.
            return_tensors: "pt", or None for lists.
            allow_http: whether, or under which rules, images are fetched by address.

        Raises:
            ConversationError: see `render`.
            ImageError: a picture that cannot be opened.
        """
        refuse_other_template(chat_template)
        batch = is_batch(conversation)
        prompts = [
            render(
                self.tokenizer,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for messages in (conversation if batch else [conversation])
        ]
        if not tokenize:
            return prompts if batch else prompts[0]
        made = self(
            text=prompts,
            return_tensors="pt" if return_tensors == "auto" else return_tensors,
            allow_http=allow_http,
        )
        return made if return_dict else made["input_ids"]


def _ids(tokenizer: Any, text: str, allowed: AllowedSpecial) -> list[int]:
    if isinstance(text, PromptText):
        return list(text.ids)
    ids: list[int] = tokenizer.encode(text, allowed_special=allowed)
    return ids


def _images_of(text: str) -> list[Any]:
    images = getattr(text, "images", ())
    found = [image.image if isinstance(image, ImageSource) else image for image in images]
    return [image for image in found if image is not None]


def _opened(images: Any, http: HttpRules | None) -> Any:
    if isinstance(images, list | tuple):
        return [_opened(image, http) for image in images]
    if http is not None and is_url(images):
        return open_image(images, http=http)
    return images


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

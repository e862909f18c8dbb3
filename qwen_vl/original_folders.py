"""Folders of 2023 for transformers' Auto classes: names that lead to the native classes.

Their config.json and tokenizer_config.json name classes of remote code, which is never run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from qwen_vl.config_map import image_start_of, is_original_layout, ranks_before, to_native_config
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.errors import ModelError
from qwen_vl.image_processing import QwenVLImageProcessor
from qwen_vl.image_settings import image_settings
from qwen_vl.loading import FolderConfig
from qwen_vl.tokenization import QwenVLTokenizer


class QWenConfig(QwenVLConfig):
    """The config of 2023; reading one gives a native QwenVLConfig."""

    model_type = "qwen"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Translate; the rank file is only counted where the config does not tell `<img>`'s id.

        Raises:
            UnsupportedArchitectureError: a Qwen without eyes.
            ConfigError: a config that contradicts itself.
        """
        is_original_layout(config_dict)
        start = image_start_of(config_dict)
        if start is not None:
            native = to_native_config(config_dict, n_ranks=ranks_before(start))
        else:
            native = FolderConfig.read(Path(str(kwargs.get("name_or_path", "")))).native
        return QwenVLConfig.from_dict(native, **kwargs)


class QWenTokenizer:
    """The name that tokenizer_config.json gave in 2023."""

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, **kwargs: Any) -> QwenVLTokenizer:
        """Load a QwenVLTokenizer."""
        return QwenVLTokenizer.from_pretrained(folder, *args, **kwargs)


def answer_for_image_processor() -> None:
    """Let AutoImageProcessor open folders of 2023 too.

    It reads the class's name from a file that they lack, before it looks at anything that can be
    registered; so its `from_pretrained` is wrapped, once. All other folders go through unchanged.
    """
    theirs = AutoImageProcessor.__dict__["from_pretrained"].__func__
    if getattr(theirs, "knows_qwen_vl", False):
        return

    @functools.wraps(theirs)
    def from_pretrained(cls: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
        if lacks_processor_file(Path(folder)):
            return image_processor_of(Path(folder))
        return theirs(cls, folder, *args, **kwargs)

    from_pretrained.knows_qwen_vl = True  # type: ignore[attr-defined]  # a mark of our own
    AutoImageProcessor.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]  # see above


def lacks_processor_file(folder: Path) -> bool:
    """Whether this is a Qwen-VL folder without a preprocessor_config.json."""
    if not (folder / "config.json").is_file() or (folder / "preprocessor_config.json").is_file():
        return False
    try:
        return bool(image_settings(folder))
    except ModelError:  # another model, or broken: transformers says what it thinks of that
        return False


def image_processor_of(folder: Path) -> QwenVLImageProcessor:
    """The image processor that a folder's config.json describes."""
    side = image_settings(folder)["image_size"]
    return QwenVLImageProcessor(size={"height": side, "width": side})

"""Folders of 2023 for transformers' Auto classes: names that lead to the native classes.

Their config.json and tokenizer_config.json name classes of remote code, which is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_vl.config_map import image_start_of, is_original_layout, ranks_before, to_native_config
from qwen_vl.configuration import QwenVLConfig
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

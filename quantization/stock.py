"""A snapshot of any decoder that transformers itself can build: Qwen2, Qwen3, Llama and so on.

Nothing here knows an architecture. Checkpoint names must be the modules' names, which they are for
text decoders; a fused or renamed checkpoint is refused by the first name that does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from model_store.change_notice import is_legal
from model_store.checkpoint import open_checkpoint
from model_store.manifest import Manifest, is_content
from quantization.calibration import CalibrationSet
from quantization.errors import UnsupportedModelError
from quantization.options import GptqConfig
from quantization.source import NativeTensors, check_weights, is_remade, read_config
from quantization.text_calibration import text_calibration

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StockSnapshot:
    """A snapshot in transformers' own layout."""

    folder: Path
    manifest: Manifest
    config: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    def build(self, dtype: torch.dtype) -> nn.Module:
        config = AutoConfig.from_pretrained(
            self.folder, trust_remote_code=False, local_files_only=True
        )
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )
        return model

    def calibration(self, config: GptqConfig) -> CalibrationSet:
        return text_calibration(self.folder, config)

    def carried(self) -> list[str]:
        return [
            entry.path
            for entry in self.manifest.files
            if (is_content(entry.path) and not is_remade(entry.path)) or is_legal(entry.path)
        ]

    def made_files(self) -> dict[str, Any]:
        return {}

    @contextmanager
    def tensors(self) -> Iterator[NativeTensors]:
        with open_checkpoint(self.folder) as checkpoint:
            yield NativeTensors(checkpoint, None)


def open_stock(folder: Path, manifest: Manifest) -> StockSnapshot:
    """Check that a folder is a full-precision snapshot of a decoder.

    Raises:
        NotASnapshotError: weights that the manifest does not list.
        AlreadyQuantizedError: it holds packed integers.
        UnsupportedModelError: transformers has no such decoder, or its code came with the weights.
    """
    config = read_config(folder)
    check_weights(
        folder,
        manifest,
        "quantization_config" in config or (folder / "quantize_config.json").is_file(),
    )
    source = StockSnapshot(folder, manifest, config)
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            source.build(torch.float32)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(
            f"transformers cannot build {config.get('model_type')!r}: {line}"
        ) from error
    return source

"""Packed (GPTQ) linear layers of a checkpoint, read back as plain weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.gptq_format import Version, dequantize
from model_store.tensors import RawTensor

PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class GptqForm:
    """How packed weights are stored."""

    bits: int = 4
    version: Version = "gptq"

    def weight(self, read: Callable[[str], RawTensor], module: str) -> NDArray[np.float32]:
        """Dequantize a module: (in, out) float32.

        Raises:
            GptqFormatError: tensors that do not belong together.
        """
        qweight, qzeros, scales, g_idx = (read(f"{module}.{part}").values() for part in PARTS)
        return dequantize(
            qweight.astype(np.int32, copy=False),
            qzeros.astype(np.int32, copy=False),
            scales.astype(np.float32, copy=False),
            g_idx.astype(np.int32, copy=False),
            bits=self.bits,
            version=self.version,
        )


def gptq_form(config: Mapping[str, Any], quantize_config: Mapping[str, Any]) -> GptqForm:
    """Read how packed weights are stored, from config.json or else from quantize_config.json."""
    settings = config.get("quantization_config") or quantize_config
    if not isinstance(settings, Mapping):
        return GptqForm()
    named = settings.get("checkpoint_format") or settings.get("format")
    bits = settings.get("bits")
    return GptqForm(
        bits=bits if type(bits) is int else 4, version="gptq_v2" if named == "gptq_v2" else "gptq"
    )

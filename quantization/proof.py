"""Read back what was written, and compare it with what was in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_store.checkpoint import open_checkpoint
from model_store.gptq_format import dequantize
from model_store.manifest import TensorDigest
from quantization.errors import WrittenModelError
from quantization.sequential import CalibrationInput
from quantization.writing import FORMAT, weight_digest
from qwen_vl.loading import load_model

# the loaded model computes the same products; only its kernels may add them in another order
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_files(
    folder: Path, weights: Mapping[str, str], tensors: Mapping[str, TensorDigest], *, bits: int
) -> None:
    """Re-read every tensor; dequantize every packed linear and compare it exactly.

    Args:
        folder: the written weight files.
        weights: linear -> `weight_digest` of what memory held.
        tensors: tensor -> digest of the bytes that went to the writer.
        bits: width of a code.

    Raises:
        WrittenModelError: naming the first tensor that differs.
    """
    with open_checkpoint(folder) as checkpoint:
        if set(checkpoint.names()) != set(tensors):
            raise WrittenModelError("the written files do not hold the tensors that were written")
        for name, digest in tensors.items():
            if checkpoint.read(name).digest() != digest:
                raise WrittenModelError(f"{name} reads back differently")
        for name, expected in weights.items():
            parts: list[Any] = [checkpoint.read(f"{name}.{part}").values() for part in _PARTS]
            values = dequantize(*parts, bits=bits, version=FORMAT)
            if weight_digest(values.T) != expected:
                raise WrittenModelError(f"{name} dequantizes to other weights than memory held")


_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@torch.no_grad()
def logits(model: nn.Module, sample: CalibrationInput) -> Tensor:
    """One forward pass over a sample: (tokens, vocabulary) float32, on the CPU."""
    device = next(model.parameters()).device
    given = {"input_ids": sample.input_ids[None].to(device), "use_cache": False}
    if sample.pixel_values is not None:
        given["pixel_values"] = sample.pixel_values.to(device)
    out: Tensor = model(**given).logits[0].float().cpu()
    return out


def check_loads(
    folder: Path, sample: CalibrationInput, expected: Tensor, *, dtype: torch.dtype, device: str
) -> float:
    """Load the written snapshot as a user would and compare one forward pass.

    Returns:
        The relative difference of the logits.

    Raises:
        WrittenModelError: over the tolerance.
    """
    # what was written is what counts, and not how a kernel rounds
    loaded = load_model(folder, dtype=dtype, device=device, kernels="reference")
    found = logits(loaded, sample)
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= TOLERANCE[dtype]:
        raise WrittenModelError(f"the written model's logits differ by {difference:.2g}")
    return difference

"""Read back what was written, compare it with what was in memory, and run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_store.checkpoint import Checkpoint
from model_store.gptq_format import PackedLinear, Version, dequantize
from model_store.manifest import TensorDigest
from quantization.batches import Batch, CalibrationInput, given
from quantization.blocks import decoder_layers, finish, run_layer
from quantization.errors import WrittenModelError
from quantization.kernels import Stored, disagreements, installed
from quantization.options import GptqConfig
from quantization.skeleton import build_empty, empty, fill, fill_outside, names_below
from quantization.source import NativeTensors, Source
from quantization.writing import PARTS, weight_digest
from qwen_vl.int4 import QuantizedFormat, put_quantized

# the loaded model computes the same products; only its kernels may add them in another order
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def check_tensors(checkpoint: Checkpoint, tensors: Mapping[str, TensorDigest]) -> None:
    """Re-read every tensor and compare it with the bytes that went to the writer.

    Raises:
        WrittenModelError: naming the first tensor that differs.
    """
    if set(checkpoint.names()) != set(tensors):
        raise WrittenModelError("the written files do not hold the tensors that were written")
    for name, digest in tensors.items():
        if checkpoint.read(name).digest() != digest:
            raise WrittenModelError(f"{name} reads back differently")


def check_linears(
    tensors: NativeTensors, weights: Mapping[str, str], config: GptqConfig
) -> dict[str, float]:
    """Dequantize every written linear, compare it exactly, and run it through all kernels.

    Args:
        tensors: what was written, by the names of the modules.
        weights: linear -> `weight_digest` of what memory held.
        config: widths, groups and version.

    Returns:
        Kernel -> its largest relative error.

    Raises:
        WrittenModelError: naming the first linear that differs.
        KernelDisagreesError: naming a kernel.
    """
    kernels, worst = installed(), dict[str, float]()
    for name, expected in weights.items():
        stored = _stored(tensors, name, config)
        values = dequantize(*stored.packed, bits=stored.bits, version=stored.version)
        if weight_digest(values.T) != expected:
            raise WrittenModelError(f"{name} dequantizes to other weights than memory held")
        for kernel, error in disagreements(stored, kernels):
            worst[kernel] = max(worst.get(kernel, 0.0), error)
    return worst


def _stored(tensors: NativeTensors, name: str, config: GptqConfig) -> Stored:
    wanted = {f"{name}.{part}" for part in PARTS}
    held: dict[str, Any] = {key: raw.values() for key, raw in tensors.only(wanted)}
    own = config.for_module(name)
    packed = PackedLinear(*(held[f"{name}.{part}"] for part in PARTS))
    version: Version = "gptq_v2" if own.format == "gptq_v2" else "gptq"
    return Stored(name, packed, own.bits, own.group_size, version, own.act_order == "dynamic")


@torch.no_grad()
def logits(model: nn.Module, sample: CalibrationInput) -> Tensor:
    """One forward pass over a sample: (tokens, vocabulary) float32, on the CPU."""
    out: Tensor = model(**given(model, sample)).logits[0].float().cpu()
    return out


@torch.no_grad()
def logits_behind(model: nn.Module, hidden: Tensor) -> Tensor:
    """What the model makes of the hidden states (1, tokens, width) behind its last layer."""
    # any text of this length will do: the layers are not run, what they made is given
    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    told = {"input_ids": ids, "use_cache": False}
    out: Tensor = finish(model, decoder_layers(model), told, hidden).logits[0].float().cpu()
    return out


@dataclass(frozen=True, slots=True)
class Probe:
    """The sample of the last check, in front of the first layer, and what memory makes of it."""

    batch: Batch
    expected: Tensor  # (tokens, vocabulary)


@torch.no_grad()
def check_runs(
    written: NativeTensors, source: Source, probe: Probe, config: GptqConfig, dtype: torch.dtype
) -> float:
    """Run the written weights, one layer in memory at a time, and compare one forward pass.

    Returns:
        The relative difference of the logits.

    Raises:
        WrittenModelError: over the tolerance.
    """
    model = build_empty(lambda: source.build(dtype))
    for name in sorted(n.removesuffix(".qweight") for n in written.infos if n.endswith(".qweight")):
        own = config.for_module(name)
        form = QuantizedFormat(own.bits, own.group_size, zeros_minus_one=own.format == "gptq")
        with torch.device("meta"):
            put_quantized(model, {name: f"{name}.bias" in written.infos}, form)
    layers = decoder_layers(model)
    fill_outside(model, layers, written, dtype=dtype, device=config.device)
    hidden = probe.batch.hidden
    for number, (prefix, layer) in enumerate(layers.items()):
        names = names_below(written.infos, [prefix])
        fill(model, written.only(names), dtype=dtype, device=config.device)
        hidden = run_layer(layer, hidden, probe.batch.calls[number])
        empty(layer)
    found = logits_behind(model, hidden)
    difference = float((found - probe.expected).norm() / probe.expected.norm())
    if not difference <= TOLERANCE[dtype]:
        raise WrittenModelError(f"the written model's logits differ by {difference:.2g}")
    return difference

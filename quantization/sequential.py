"""Quantize a model in memory, decoder layer by decoder layer, each from what it really gets.

Every sample runs once up to the first decoder layer. From there all samples go through one layer at
a time, once: each linear is caught when its input arrives, quantized, and goes on with the
quantized weight, so what follows is calibrated on what will really reach it. Linears that get the
very same tensor (q, k and v; gate and up) share one Hessian and one factorization; nothing here
knows a model's names.

Samples of unequal length are padded on the right. Attention is causal, so no real token sees the
padding, and padded positions are kept out of every Hessian. One layer's activations of all samples
are alive at a time: memory grows with samples × the longest of them.

The arithmetic is deterministic on one machine with one number of threads; another processor or
thread count adds floats in another order, and a code may then fall on the other side of a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model_store.progress import NoProgress, Progress
from quantization.errors import CalibrationError, UnsupportedModelError
from quantization.hessian import HessianAccumulator
from quantization.options import GptqConfig
from quantization.solver import (
    Factor,
    QuantizedLinear,
    factor_hessian,
    quantize_linear,
    relative_error,
    round_linear,
)


@dataclass(frozen=True, slots=True)
class CalibrationInput:
    """One sample as the model takes it: `input_ids` (n,) int64, and its images, if any."""

    input_ids: Tensor
    pixel_values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerError:
    """How well one linear was quantized: relative output error on the calibration set."""

    name: str
    error: float
    rounding_error: float  # of rounding to nearest, for comparison
    rows: int  # calibration rows behind it
    damping: float


Sink = Callable[[str, QuantizedLinear], None]  # gets every quantized linear once, by full name


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder's layers by name, in order.

    Raises:
        UnsupportedModelError: the model does not say where its decoder is.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    names = {id(module): name for name, module in model.named_modules()}
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(lists)} lists of layers where one was expected"
        )
    return {names[id(layer)]: layer for layer in lists[0]}


def linears(layers: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """Every linear of the decoder layers by full name: what gets quantized."""
    return {
        f"{prefix}.{name}": module
        for prefix, layer in layers.items()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    samples: Sequence[CalibrationInput],
    config: GptqConfig,
    sink: Sink,
    *,
    progress: Progress | None = None,
) -> list[LayerError]:
    """Quantize every linear of the decoder in place (fake quantization, same dtype).

    Args:
        model: in memory, full precision; its decoder's linears are overwritten.
        samples: at least one.
        config: how to quantize.
        sink: called with each linear as soon as it is done.
        progress: where to report to, a layer at a time.

    Raises:
        CalibrationError: no samples.
        UnsupportedModelError: no decoder layers, or a linear that is never run.
        QuantizationError: see `quantize_linear`.
    """
    model.eval()
    layers = decoder_layers(model)
    batch = _inputs_of_first_layer(model, next(iter(layers.values())), samples)
    errors: list[LayerError] = []
    with (progress or NoProgress()).task("quantize", len(layers), unit="layers") as task:
        for prefix, layer in layers.items():
            run = _LayerRun(config, sink, batch.kept)
            batch.hidden = run.through(prefix, layer, batch)
            errors += run.errors
            worst = max(run.errors, key=lambda one: one.error)
            task.note(f"worst relative error {worst.error:.2g} ({worst.name.split('.')[-1]})")
            task.advance()
    return errors


@dataclass
class _Batch:
    """All samples between two layers."""

    hidden: Tensor  # (samples, longest, width)
    kept: Tensor  # (samples, longest) bool: False at padding
    options: dict[str, Any]  # the keyword arguments that the decoder gives its layers


class _Reached(Exception):  # noqa: N818  no error: it ends a forward pass that has done its work
    pass


def _inputs_of_first_layer(
    model: nn.Module, first: nn.Module, samples: Sequence[CalibrationInput]
) -> _Batch:
    if not samples:
        raise CalibrationError("there are no calibration samples", hint="Raise --samples.")
    longest = max(len(sample.input_ids) for sample in samples)
    device = next(model.parameters()).device
    caught: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        caught.append((args[0] if args else options.pop("hidden_states"), options))
        raise _Reached

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    kept = torch.zeros(len(samples), longest, dtype=torch.bool, device=device)
    try:
        for row, sample in enumerate(samples):
            kept[row, : len(sample.input_ids)] = True
            _run_until_caught(model, sample, longest, device)
    finally:
        handle.remove()
    # every sample was padded to the same length, so mask and positions are those of any of them
    return _Batch(torch.cat([hidden for hidden, _ in caught]), kept, caught[0][1])


def _run_until_caught(
    model: nn.Module, sample: CalibrationInput, longest: int, device: torch.device
) -> None:
    # the pad is the sample's own first id: any ordinary token does, it is never looked at
    ids = sample.input_ids.new_full((1, longest), int(sample.input_ids[0]))
    ids[0, : len(sample.input_ids)] = sample.input_ids
    given: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    if sample.pixel_values is not None:
        given["pixel_values"] = sample.pixel_values.to(device)
    try:
        model(**given)
    except _Reached:
        return
    raise UnsupportedModelError(f"{type(model).__name__} does not run its own decoder layers")


@dataclass
class _LayerRun:
    """One layer's pass: catches each linear's input, quantizes it, lets it go on."""

    config: GptqConfig
    sink: Sink
    kept: Tensor
    errors: list[LayerError] = field(default_factory=list)
    _input: Tensor | None = None  # held, so that no other tensor can take its identity
    _hessian: Tensor = field(default_factory=lambda: torch.empty(0))
    _factor: Factor | None = None

    def through(self, prefix: str, layer: nn.Module, batch: _Batch) -> Tensor:
        mine = linears({prefix: layer})
        handles = [
            linear.register_forward_pre_hook(self._catcher(name)) for name, linear in mine.items()
        ]
        try:
            out = layer(batch.hidden, **batch.options)
        finally:
            for handle in handles:
                handle.remove()
        unseen = mine.keys() - {error.name for error in self.errors}
        if unseen:
            raise UnsupportedModelError(f"{min(unseen)} was never run by its layer")
        hidden: Tensor = out if isinstance(out, Tensor) else out[0]
        return hidden

    def _catcher(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def caught(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Linear)  # noqa: S101  only linears are hooked
            self._quantize(name, module, args[0])

        return caught

    def _quantize(self, name: str, linear: nn.Linear, inputs: Tensor) -> None:
        if inputs is not self._input:
            self._take_input(name, inputs)
        weight = linear.weight.detach().clone()
        rounded = round_linear(weight, self.config, name=name)
        best = rounded
        if self._factor is not None:
            best = quantize_linear(weight, self._factor, self.config, name=name)
        values = best.weight()
        linear.weight.copy_(values)
        error = relative_error(weight, values, self._hessian)
        nearest = relative_error(weight, rounded.weight(), self._hessian)
        rows = int(self.kept.sum())
        self.errors.append(LayerError(name, error, nearest, rows, best.damping))
        self.sink(name, best)

    def _take_input(self, name: str, inputs: Tensor) -> None:
        accumulator = HessianAccumulator(inputs.shape[-1], inputs.device)
        for rows, kept in zip(inputs, self.kept, strict=True):
            accumulator.add(rows[kept])
        self._input, self._hessian = inputs, accumulator.matrix()
        if self.config.method == "gptq":
            self._factor = factor_hessian(self._hessian, self.config, name=name)

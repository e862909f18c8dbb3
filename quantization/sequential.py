"""Quantize a model decoder layer by decoder layer, each linear from what it really gets.

Samples go through one layer at a time, once. They are run in batches, each stopped where a linear
would compute: when all batches have arrived, the inputs make the Hessian, the linear is quantized,
and all go on with the quantized weight, so what follows is calibrated on what will really reach it.
Linears that get the very same tensor (q, k and v; gate and up) share one Hessian and one
factorization; nothing here knows a model's names.

Samples of unequal length are padded on the right. Attention is causal, so no real token sees the
padding, and padded positions are kept out of every Hessian. Memory holds one layer's weights when
they come from a `LayerStore`, and of the activations what crosses a layer.

The arithmetic is deterministic on one machine with one number of threads; another processor or
thread count adds floats in another order, and a code may then fall on the other side of a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from model_store.progress import NoProgress, Progress
from quantization.batches import Batch, CalibrationInput, make_batches
from quantization.blocks import decoder_layers, intercepted, linears, run_layer
from quantization.errors import CalibrationError, UnsupportedModelError, UnusableTensorError
from quantization.factor import Factor, factor_hessian, towards_original
from quantization.hessian import HessianAccumulator
from quantization.module_rules import chosen
from quantization.options import GptqConfig
from quantization.solver import (
    QuantizedLinear,
    quantize_linear,
    relative_errors,
    round_linear,
)
from quantization.turns import meet, together

__all__ = [
    "CalibrationInput",
    "LayerError",
    "LayerRun",
    "decoder_layers",
    "linears",
    "quantize_model",
]

_SAMPLED_ROWS = 128  # of each linear, for its reported error: measuring all would cost a solve


@dataclass(frozen=True, slots=True)
class LayerError:
    """How well one linear was quantized: relative output error on the calibration set."""

    name: str
    error: float
    rounding_error: float  # of rounding to nearest, for comparison
    rows: int  # calibration rows behind it
    damping: float
    columns: int = 0
    dead: int = 0  # inputs that no calibration row activated


Sink = Callable[[str, QuantizedLinear], None]  # gets every quantized linear once, by full name


class LayerStore(Protocol):
    """Where decoder layers come from, and what is known of those an earlier run has done."""

    def load(self, prefix: str, layer: nn.Module) -> None:
        """Fill a layer's weights."""

    def done(self, prefix: str, batches: list[Batch]) -> list[LayerError] | None:
        """Put the batches behind a layer that was finished earlier; None when it was not."""

    def finished(self, prefix: str, batches: list[Batch], errors: list[LayerError]) -> None:
        """Take note of a layer that is done, and forget its weights."""


class InMemory:
    """All layers are there already, and stay."""

    def load(self, prefix: str, layer: nn.Module) -> None: ...

    def done(self, prefix: str, batches: list[Batch]) -> list[LayerError] | None:
        return None

    def finished(self, prefix: str, batches: list[Batch], errors: list[LayerError]) -> None: ...


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
        CalibrationError: no samples, or too few for the width of a layer.
        UnsupportedModelError: no decoder layers, or a linear that is never run.
        QuantizationError: see `quantize_linear`.
    """
    model.eval()
    batches = make_batches(model, decoder_layers(model), shared(samples, config.share or 1.0))
    return quantize_layers(model, batches, config, sink, InMemory(), progress=progress)


def shared(samples: Sequence[CalibrationInput], share: float) -> list[CalibrationInput]:
    """An even pick of the samples, at least one of them."""
    if not samples:
        raise CalibrationError("there are no calibration samples", hint="Raise --samples.")
    count = max(1, round(len(samples) * share))
    return [samples[number * len(samples) // count] for number in range(count)]


@torch.no_grad()
def quantize_layers(
    model: nn.Module,
    batches: list[Batch],
    config: GptqConfig,
    sink: Sink,
    store: LayerStore,
    *,
    progress: Progress | None = None,
) -> list[LayerError]:
    """Quantize layer by layer; the batches end behind the last layer. See `quantize_model`."""
    layers = decoder_layers(model)
    wanted = set(chosen(linears(layers), config.exclude))
    errors: list[LayerError] = []
    with (progress or NoProgress()).task("quantize", len(layers), unit="layers") as task:
        for number, (prefix, layer) in enumerate(layers.items()):
            earlier = store.done(prefix, batches)
            if earlier is None:
                store.load(prefix, layer)
                mine = {n: one for n, one in linears({prefix: layer}).items() if n in wanted}
                run = LayerRun(config, sink, batches, mine)
                run.through(layer, number)
                store.finished(prefix, batches, run.errors)
                earlier = run.errors
            errors += earlier
            if earlier:
                worst = max(earlier, key=lambda one: one.error)
                task.note(f"worst relative error {worst.error:.2g} ({worst.name.split('.')[-1]})")
            task.advance()
    return errors


@dataclass
class LayerRun:
    """One layer's pass: catches each linear's input, quantizes it, lets it go on."""

    config: GptqConfig
    sink: Sink
    batches: list[Batch]
    linears: Mapping[str, nn.Linear]
    errors: list[LayerError] = field(default_factory=list)
    _inputs: list[Tensor] = field(default_factory=list)  # held: identity means being the same input
    _gram: HessianAccumulator | None = None
    _hessian: Tensor | None = None
    _factor: Factor | None = None  # rules change bits and groups, which it does not depend on

    def through(self, layer: nn.Module, number: int) -> None:
        """Quantize the layer's linears, and move every batch behind it."""
        twins = [(one, one.original) for one in self.batches if one.original is not None]
        works = [partial(run_layer, layer, one.hidden, one.calls[number]) for one in self.batches]
        works += [partial(run_layer, layer, hidden, one.calls[number]) for one, hidden in twins]
        results = self.finish(works)
        for one, hidden in zip(self.batches, results, strict=False):
            one.hidden = hidden
        for (one, _), hidden in zip(twins, results[len(self.batches) :], strict=True):
            one.original = hidden

    def finish(self, works: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """Run the passes side by side, one for each batch, quantizing what they meet at."""
        with intercepted(self.linears, meet):
            results = list(together(works, self._arrived))
        unseen = self.linears.keys() - {error.name for error in self.errors}
        if unseen:
            raise UnsupportedModelError(f"{min(unseen)} was never run by its layer")
        return results

    def _arrived(self, name: str, inputs: list[Tensor]) -> Callable[[int, Tensor], Tensor]:
        linear = self.linears[name]
        self._take_inputs(name, inputs)
        before = linear.weight.detach().clone()
        self._quantize(name, linear, before)

        def answer(number: int, mine: Tensor) -> Tensor:
            weight = linear.weight if number < len(self.batches) else before
            return nn.functional.linear(mine, weight, linear.bias)

        return answer

    def _take_inputs(self, name: str, inputs: list[Tensor]) -> None:
        same = len(self._inputs) == len(inputs) and all(
            one is other for one, other in zip(inputs, self._inputs, strict=True)
        )
        if same:
            return
        self._inputs, self._hessian, self._factor = list(inputs), None, None
        gram = HessianAccumulator(inputs[0].shape[-1], inputs[0].device)
        count = len(self.batches)
        for number, one in enumerate(self.batches):
            twin = inputs[count + number] if len(inputs) > count else None
            gram.add(one.rows(inputs[number]), None if twin is None else one.rows(twin))
        self._gram, self._hessian = gram, gram.matrix()
        if not bool(torch.isfinite(self._hessian).all()):
            raise UnusableTensorError(f"the calibration inputs of {name} are not finite")
        columns = inputs[0].shape[-1]
        if self.config.method == "gptq" and 2 * gram.rows < columns:
            raise CalibrationError(
                f"{name} has {columns} inputs, and its Hessian of {gram.rows} calibration rows has "
                f"at most rank {gram.rows}: under half of it",
                hint="Raise --samples (--preset fast runs half of them), or use --method rtn.",
            )

    def _quantize(self, name: str, linear: nn.Linear, before: Tensor) -> None:
        config, hessian, gram = self.config.for_module(name), self._hessian, self._gram
        assert hessian is not None and gram is not None  # noqa: S101, PT018  inputs were taken
        if config.method == "gptq":
            best = self._solved(name, before, config, hessian, gram)
        else:
            best = round_linear(before, config, name=name)
        linear.weight.copy_(best.weight())
        step = -(-before.shape[0] // _SAMPLED_ROWS)
        some = before[::step]
        rounded = round_linear(some, config).weight()
        error, nearest = relative_errors(some, [linear.weight[::step], rounded], hessian)
        dead = int((hessian.diagonal() <= 0).sum())
        self.errors.append(
            LayerError(name, error, nearest, gram.rows, best.damping, before.shape[1], dead)
        )
        self.sink(name, best)

    def _solved(
        self,
        name: str,
        before: Tensor,
        config: GptqConfig,
        hessian: Tensor,
        gram: HessianAccumulator,
    ) -> QuantizedLinear:
        if self._factor is None:
            self._factor = factor_hessian(hessian, config, name=name)
        factor, drift = self._factor, gram.drift()
        if drift is not None and config.asymmetric:
            before = towards_original(before, hessian, drift, factor.damping)
        return quantize_linear(before, factor, config, name=name)

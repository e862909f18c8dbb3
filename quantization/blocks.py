"""Find a model's decoder layers and what in them is quantized; run them apart from the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantization.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Call:
    """What a decoder gives one of its layers beside the hidden states."""

    others: tuple[Any, ...]
    options: dict[str, Any]


class _Reached(Exception):  # noqa: N818  no error: it ends a forward pass that has done its work
    pass


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder's layers by name, in order.

    Raises:
        UnsupportedModelError: the model does not say where its decoder is.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    names = {id(module): name for name, module in model.named_modules()}
    lists = [m for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if len(lists) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(lists)} lists of layers where one was expected"
        )
    layers = {names[id(layer)]: layer for layer in lists[0]}
    for name, layer in layers.items():
        # fused experts: tensors that are no linears, and most of the weights
        if any(parameter.ndim > 2 for parameter in layer.parameters()):
            raise UnsupportedModelError(f"{name} holds weights that are not linears: experts?")
    return layers


def linears(layers: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """Every linear of the decoder layers by full name: what gets quantized."""
    return {
        f"{prefix}.{name}": module
        for prefix, layer in layers.items()
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another `forward` for a while."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, old in before.items():
            if old is None:
                del module.forward
            else:
                module.forward = old


# whether a class of layers returns a tuple, as seen when its model was run; annotations err
_RETURNS_TUPLE: dict[type[nn.Module], bool] = {}


def reach_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], given: Mapping[str, Any]
) -> tuple[Tensor, list[Call]]:
    """Run a model up to its first layer: that layer's input, and how each layer is called.

    No layer runs: each hands its input on, so one pass tells what every layer is given (layers with
    sliding windows are given other masks and positions than their neighbours).

    Raises:
        UnsupportedModelError: the model does not run its layers once each, in order, each on what
            the one before it returned.
    """
    kind = type(next(iter(layers.values())))
    guess = _returns_tuple(kind)
    for as_tuple in (guess, not guess):
        seen: list[Tensor] = []
        calls: list[Call] = []
        forwards = {
            layer: _note(number, seen, calls, as_tuple=as_tuple, last=len(layers) - 1)
            for number, layer in enumerate(layers.values())
        }
        with _replaced(forwards), suppress(_Reached):
            model(**given)
        if len(calls) == len(layers):
            _RETURNS_TUPLE[kind] = as_tuple
            return seen[0], calls
    raise UnsupportedModelError(
        f"{type(model).__name__} does not run its decoder layers one on the other"
    )


def _note(
    number: int, seen: list[Tensor], calls: list[Call], *, as_tuple: bool, last: int
) -> Callable[..., Any]:
    def forward(*args: Any, **options: Any) -> Any:
        hidden = args[0] if args else options.pop("hidden_states", None)
        if len(calls) != number or (seen and hidden is not seen[-1]):
            raise _Reached  # not what the layer before has handed on
        seen.append(hidden)
        calls.append(Call(args[1:], options))
        if number == last:
            raise _Reached
        return (hidden,) if as_tuple else hidden

    return forward


def finish(
    model: nn.Module, layers: Mapping[str, nn.Module], given: Mapping[str, Any], hidden: Tensor
) -> Any:
    """What the model returns when its layers end with `hidden`: they are not run."""
    with ended(layers, lambda: hidden):
        return model(**given)


@contextmanager
def ended(layers: Mapping[str, nn.Module], hidden: Callable[[], Tensor]) -> Iterator[None]:
    """Let every layer return `hidden()` whatever it is given."""

    def end(layer: nn.Module) -> Callable[..., Any]:
        as_tuple = _returns_tuple(type(layer))
        return lambda *args, **options: (hidden(),) if as_tuple else hidden()

    with _replaced({layer: end(layer) for layer in layers.values()}):
        yield


def _returns_tuple(kind: type[nn.Module]) -> bool:
    if kind in _RETURNS_TUPLE:
        return _RETURNS_TUPLE[kind]
    return "tuple" in str(inspect.signature(kind.forward).return_annotation).lower()


def run_layer(layer: nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """Run one layer as its decoder would."""
    out = layer(hidden, *call.others, **call.options)
    first: Tensor = out if isinstance(out, Tensor) else out[0]
    return first


@contextmanager
def intercepted(
    named: Mapping[str, nn.Linear], instead: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Let `instead` compute what the linears would."""

    def forward(name: str) -> Callable[[Tensor], Tensor]:
        return lambda inputs: instead(name, inputs)

    with _replaced({linear: forward(name) for name, linear in named.items()}), torch.no_grad():
        yield

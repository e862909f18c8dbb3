"""A model without its decoder layers' weights: they come and go, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from model_store.tensors import RawTensor
from quantization.errors import UnsupportedModelError
from quantization.source import NativeTensors
from qwen_vl.int4 import is_packed
from qwen_vl.loading import to_torch

Named = Iterable[tuple[str, RawTensor]]


def build_empty(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model whose parameters take no memory; what it computes by itself is real."""
    with init_empty_weights(include_buffers=False):
        model = make()
    model.eval()
    return model


def fill(model: nn.Module, named: Named, *, dtype: torch.dtype, device: str) -> None:
    """Put tensors into their places by full name; floats take `dtype`, packed integers stay.

    Raises:
        UnsupportedModelError: a tensor that the model has no place for, or of another shape.
    """
    for name, raw in named:
        tensor = to_torch(raw)
        if tensor.is_floating_point() and not is_packed(name):
            tensor = tensor.to(dtype)
        _assign(model, name, tensor.to(device))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
        old = getattr(module, leaf)
    except AttributeError:
        raise UnsupportedModelError(f"the checkpoint has {name}, and the model has not") from None
    if tuple(old.shape) != tuple(tensor.shape):
        raise UnsupportedModelError(
            f"{name} is of shape {tuple(tensor.shape)}, config.json makes it {tuple(old.shape)}"
        )
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def empty(module: nn.Module) -> None:
    """Drop a module's weights; its place in the model stays."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            bare = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            setattr(part, name, bare)
        for name, buffer in list(part.named_buffers(recurse=False)):
            if name in ("qweight", "qzeros", "scales", "g_idx", "bias"):
                setattr(part, name, torch.empty_like(buffer, device="meta"))


def fill_outside(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    tensors: NativeTensors,
    *,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Give everything but the layers its weights.

    Raises:
        UnsupportedModelError: a weight that the checkpoint lacks, or that the model has not.
    """
    outside = set(tensors.infos) - names_below(tensors.infos, layers)
    fill(model, tensors.only(outside), dtype=dtype, device=device)
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
    _place_buffers(model, device)
    inside = tuple(f"{prefix}." for prefix in layers)
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" and not name.startswith(inside):
            raise UnsupportedModelError(f"the checkpoint lacks {name}")


def _place_buffers(model: nn.Module, device: str) -> None:
    """Move what the model computed by itself, such as rotary frequencies, to the device."""
    for part in model.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.device.type != "meta":
                setattr(part, name, buffer.to(device))


def names_below(infos: Mapping[str, object], prefixes: Iterable[str]) -> set[str]:
    """The tensors of the modules that the prefixes name."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return {name for name in infos if name.startswith(starts)}

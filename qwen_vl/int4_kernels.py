"""Fast integer kernels of the gptqmodel library in place of the reference linear.

A kernel is believed when it gives what the reference gives, once for every size of layer: some
ignore what a checkpoint says (zero points, the order of columns).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from qwen_vl.errors import KernelError
from qwen_vl.int4 import QuantizedLinear

LIBRARY = "gptqmodel"
CHOICES = ("auto", "reference", LIBRARY)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # one in every zero point of a word
_PROBES = 8
# rounding of inputs, scales and sums to half precision, and no more
_TOLERANCE = 0.03
# what the library raises when a kernel does not fit a layer or this machine
_REFUSALS = (ImportError, NotImplementedError, ValueError, RuntimeError, AssertionError)
_LOG = logging.getLogger(__name__)


def use_kernels(model: nn.Module, choice: str, *, dtype: torch.dtype) -> None:
    """Replace the reference linears of a loaded model by kernels, all of them or none.

    "auto" does so where the library is installed, the model computes in half precision, no weight
    waits on disk, and a kernel agrees with the reference; else the reference stays, with a line in
    the log. float32 asks for exactness, which only the reference has.

    Args:
        model: with `QuantizedLinear` layers on their devices; changed in place.
        choice: one of CHOICES.
        dtype: what the model computes in.

    Raises:
        KernelError: an unknown choice; or "gptqmodel" was asked for and cannot be had.
    """
    if choice not in CHOICES:
        raise KernelError(f"unknown kernels {choice!r}, not one of {', '.join(CHOICES)}")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    exact = choice == "auto" and dtype == torch.float32
    if choice == "reference" or exact or not layers:
        return
    try:
        _check_places(model, layers)
        made = _kernels(layers, dtype)
    except KernelError as error:
        if choice != "auto":
            raise
        _LOG.warning("Int4 layers stay on the slow reference: %s", error)
        return
    for name, kernel in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, kernel)


def uses_kernels(model: nn.Module) -> bool:
    """Whether layers hold integers in a kernel's own order, which no file may get."""
    return any(type(module).__module__.split(".")[0] == LIBRARY for module in model.modules())


def _check_places(model: nn.Module, layers: dict[str, QuantizedLinear]) -> None:
    """A kernel stays where it was prepared, so hooks must not move its layer about."""
    places = {weight.device.type for weight in model.parameters()}
    places |= {layer.qweight.device.type for layer in layers.values()}
    if "meta" in places:
        raise KernelError("weights wait on disk, where no kernel can prepare them")
    if "cpu" in places and len(places) > 1:
        raise KernelError("weights wait in the processor's memory for another device")


def _kernels(layers: dict[str, QuantizedLinear], dtype: torch.dtype) -> dict[str, nn.Module]:
    if any(layer.form.bits not in _ONES for layer in layers.values()):
        raise KernelError("no kernel reads codes that cross the borders of words")
    if find_spec(LIBRARY) is None:
        raise KernelError(f"{LIBRARY} is not installed", hint="pip install 'modelferry[gptq]'")
    with contextlib.redirect_stdout(sys.stderr):  # the library says what it does on stdout
        choose = cache(partial(_kernel_class, dtype=dtype))
        kinds = {name: _Kind.of(layer) for name, layer in layers.items()}
        made = {n: _filled(choose(kinds[n]), kinds[n], layers[n], dtype) for n in layers}
        _prepare(made)
        seen: set[_Kind] = set()
        for name, kind in kinds.items():
            if kind not in seen:
                _compare(layers[name], made[name], dtype, name)
                seen.add(kind)
    return made


class _Kind(NamedTuple):
    """What a kernel is chosen by."""

    bits: int
    group_size: int
    desc_act: bool
    sym: bool
    zeros_minus_one: bool
    in_features: int
    out_features: int
    device: torch.device

    @classmethod
    def of(cls, layer: QuantizedLinear) -> Self:
        return cls(
            layer.form.bits,
            layer.form.group_size,
            not bool((layer.g_idx.diff() >= 0).all()),
            _symmetric(layer),
            layer.form.zeros_minus_one,
            layer.in_features,
            layer.out_features,
            layer.qweight.device,
        )

    def options(self) -> dict[str, Any]:
        names = ("bits", "group_size", "desc_act", "sym")
        return {name: getattr(self, name) for name in names}


def _kernel_class(kind: _Kind, *, dtype: torch.dtype) -> Any:
    try:
        return _from_library("utils.importer").hf_select_quant_linear_v2(
            **kind.options(),
            format="gptq" if kind.zeros_minus_one else "gptq_v2",
            quant_method="gptq",
            dtype=dtype,
            device_map={"": kind.device},
            pack=False,
        )
    except _REFUSALS as error:
        raise _cannot(error) from error


def _filled(kernel: Any, kind: _Kind, layer: QuantizedLinear, dtype: torch.dtype) -> nn.Module:
    try:
        made: nn.Module = kernel(
            **kind.options(),
            in_features=layer.in_features,
            out_features=layer.out_features,
            bias=layer.bias is not None,
            pack_dtype=torch.int32,
            register_buffers=False,
        )
    except _REFUSALS as error:
        raise _cannot(error) from error
    version = 2 if kernel.REQUIRES_FORMAT_V2 else 1
    buffers = {
        "qweight": layer.qweight.clone(),
        "qzeros": _zeros(layer, version),
        "scales": layer.scales.to(torch.float16 if dtype == torch.float32 else dtype),
        "g_idx": layer.g_idx.clone(),
        "bias": None if layer.bias is None else layer.bias.to(dtype),
    }
    for leaf, tensor in buffers.items():
        made.register_buffer(leaf, tensor)
    made.qzero_format(format=version)  # type: ignore[operator]  # a method of the library's class
    return made.eval()


def _prepare(kernels: dict[str, nn.Module]) -> None:
    layers = nn.ModuleList(kernels.values())
    try:
        _from_library("utils.model").hf_gptqmodel_post_init(layers, use_act_order=False)
    except _REFUSALS as error:
        raise _cannot(error) from error


def _compare(layer: QuantizedLinear, kernel: nn.Module, dtype: torch.dtype, name: str) -> None:
    drawn = torch.randn(
        _PROBES, layer.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    x = drawn.to(layer.qweight.device, dtype)
    try:
        with torch.inference_mode():
            expected, got = layer(x.float()), kernel(x.clone()).float()
    except _REFUSALS as error:
        raise _cannot(error) from error
    away = float((got - expected).norm() / expected.norm().clamp(min=1e-12))
    if not away <= _TOLERANCE:
        raise KernelError(f"{name}: {type(kernel).__name__} is {away:.3f} away from the reference")


def _cannot(error: Exception) -> KernelError:
    said = str(error).strip() or type(error).__name__
    return KernelError(f"{LIBRARY}: {said.splitlines()[0]}")


def _from_library(module: str) -> Any:
    # transformers refuses a bundle with an import statement of a package that is not installed
    return import_module(f"{LIBRARY}.{module}")


def _symmetric(layer: QuantizedLinear) -> bool:
    """Whether every zero point is the middle."""
    middle = 2 ** (layer.form.bits - 1)
    word = _ONES[layer.form.bits] * (middle - 1 if layer.form.zeros_minus_one else middle)
    return bool((layer.qzeros == _as_int32(word)).all())


def _zeros(layer: QuantizedLinear, version: int) -> Tensor:
    """Zero points in the version a kernel reads; words wrap around as they should."""
    stored = 1 if layer.form.zeros_minus_one else 2
    return layer.qzeros + _as_int32(_ONES[layer.form.bits] * (version - stored) % 2**32)


def _as_int32(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word

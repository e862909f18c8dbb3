"""Run a written linear through every kernel that is installed, and name one that disagrees.

Which kernels exist is looked up, not required: without gptqmodel only our own reference runs. A
kernel that refuses a shape, width or group size is not asked.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model_store.gptq_format import PackedLinear, Version, dequantize, pack, unpack
from quantization.errors import KernelDisagreesError
from qwen_vl.int4 import QuantizedFormat, QuantizedLinear

_ROWS = 16  # of the probe
_OURS = "modelferry reference"


@dataclass(frozen=True, slots=True)
class Stored:
    """One linear as it lies on disk."""

    name: str
    packed: PackedLinear
    bits: int
    group_size: int
    version: Version
    desc_act: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return len(self.packed.g_idx), self.packed.scales.shape[1]


@dataclass(frozen=True, slots=True)
class Kernel:
    """How to run a linear; `tolerance` is of the relative error of its output."""

    name: str
    dtype: torch.dtype
    tolerance: float
    build: Callable[[Stored], Callable[[Tensor], Tensor] | None]  # None: it cannot


# module, class, dtype, tolerance; what 4-bit kernels round on the way was measured at .01 to .02
_GPTQMODEL = (
    ("torch", "TorchLinear", torch.bfloat16, 0.03),
    ("torch_fused", "TorchFusedLinear", torch.float32, 0.03),
    ("torch_aten_kernel", "TorchAtenLinear", torch.bfloat16, 0.03),
    ("torch_int8", "TorchInt8Linear", torch.bfloat16, 0.06),
)
# need a device: scripts/check_gpu_kernels.py
GPU_KERNELS = (
    ("marlin", "MarlinLinear", torch.float16, 0.01),
    ("exllamav2", "ExllamaV2Linear", torch.float16, 0.01),
    ("tritonv2", "TritonV2Linear", torch.float16, 0.01),
    ("torch", "TorchLinear", torch.float16, 0.01),
)


def installed(*, device: str = "cpu") -> list[Kernel]:
    """The kernels that can be run here."""
    found = [Kernel(_OURS, torch.float32, 1e-4, _ours)]
    if importlib.util.find_spec("gptqmodel") is None:
        return found
    for module, cls, dtype, tolerance in _GPTQMODEL if device == "cpu" else GPU_KERNELS:
        place = f"gptqmodel.nn_modules.qlinear.{module}"
        if importlib.util.find_spec(place) is not None:
            made = getattr(importlib.import_module(place), cls, None)
            if made is not None:
                build = _gptqmodel(made, dtype, device)
                found.append(Kernel(f"gptqmodel {cls}", dtype, tolerance, build))
    return found


def disagreements(stored: Stored, kernels: list[Kernel]) -> Iterator[tuple[str, float]]:
    """Run one linear through the kernels: each one's name and relative error.

    Raises:
        KernelDisagreesError: naming the kernel and the linear.
    """
    parts = stored.packed
    weight = torch.from_numpy(dequantize(*parts, bits=stored.bits, version=stored.version))
    dice = torch.Generator().manual_seed(0)
    probe = torch.randn(_ROWS, stored.sizes[0], generator=dice)
    expected = probe @ weight
    for kernel in kernels:
        run = kernel.build(stored)
        if run is None:
            continue
        with torch.no_grad():
            found = run(probe.to(kernel.dtype)).float().cpu()
        error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error <= kernel.tolerance:
            raise KernelDisagreesError(kernel.name, stored.name, error)
        yield kernel.name, error


def _ours(stored: Stored) -> Callable[[Tensor], Tensor]:
    form = QuantizedFormat(stored.bits, stored.group_size, zeros_minus_one=stored.version == "gptq")
    linear = QuantizedLinear(*stored.sizes, form, bias=False)
    for name, array in stored.packed._asdict().items():
        setattr(linear, name, torch.from_numpy(np.array(array)))
    return linear


def _gptqmodel(
    cls: Any, dtype: torch.dtype, device: str
) -> Callable[[Stored], Callable[[Tensor], Tensor] | None]:
    def build(stored: Stored) -> Callable[[Tensor], Tensor] | None:
        if stored.bits not in cls.SUPPORTS_BITS or stored.group_size not in cls.SUPPORTS_GROUP_SIZE:
            return None
        plain = unpack(*stored.packed, bits=stored.bits, version=stored.version)
        again = pack(
            plain.codes, plain.zeros, plain.scales, plain.g_idx, bits=stored.bits,
            version="gptq_v2",
        )  # fmt: skip
        columns, rows = stored.sizes
        try:
            linear = cls(bits=stored.bits, group_size=stored.group_size, sym=True,
                         desc_act=stored.desc_act, in_features=columns, out_features=rows,
                         bias=False, register_buffers=True)  # fmt: skip
        except (NotImplementedError, ValueError):
            return None  # its own way to say that the shape does not suit it
        for name, array in again._asdict().items():
            getattr(linear, name).data = torch.from_numpy(np.array(array))
        linear.scales.data = linear.scales.data.to(dtype)
        linear = linear.to(device).eval()
        linear.post_init()
        return lambda x: linear(x.to(device))

    return build

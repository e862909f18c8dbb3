"""A linear layer on AutoGPTQ's packed integers; exact, portable and slow: the reference.

The format is AutoGPTQ's: `qweight` packs the codes of 32 / bits input rows into one int32, lowest
bits first;
`qzeros` packs output columns likewise and, in format v1, stores the zero point minus one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qwen_vl.errors import UnsupportedQuantizationError

_PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")


@dataclass(frozen=True, slots=True)
class ModuleFormat:
    """A row of a config's `dynamic` table: a width or group size for the names that fit."""

    pattern: re.Pattern[str]
    bits: int | None
    group_size: int | None

    @classmethod
    def read(cls, table: Any) -> Iterator[ModuleFormat]:
        """Read the rows that change something; those that exclude modules are not asked for.

        Raises:
            UnsupportedQuantizationError: a row that cannot be understood.
        """
        for key, value in (table if isinstance(table, Mapping) else {}).items():
            if key.startswith("-:"):
                continue
            told: Mapping[str, Any] = value if isinstance(value, Mapping) else {"bits": "?"}
            bits, group_size = told.get("bits"), told.get("group_size")
            if not all(one is None or isinstance(one, int) for one in (bits, group_size)):
                raise UnsupportedQuantizationError(f"the dynamic row {key!r} is not understood")
            try:
                pattern = re.compile(key.removeprefix("+:"))
            except re.error as error:
                raise UnsupportedQuantizationError(f"dynamic row {key!r}: {error}") from error
            yield cls(pattern, bits, group_size)


@dataclass(frozen=True, slots=True)
class QuantizedFormat:
    """How the integers are stored."""

    bits: int = 4
    group_size: int = 128  # -1: one group per column
    zeros_minus_one: bool = True  # v1
    others: tuple[ModuleFormat, ...] = ()  # linears of another width; the first that fits counts

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise UnsupportedQuantizationError(f"{self.bits}-bit weights are not read")
        if self.group_size != -1 and self.group_size < 1:
            raise UnsupportedQuantizationError(f"a group size of {self.group_size} makes no sense")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizedFormat:
        """Read a `quantization_config` or quantize_config.json.

        Raises:
            UnsupportedQuantizationError: another method, format or width.
        """
        method = config.get("quant_method", "gptq")
        layout = config.get("checkpoint_format") or config.get("format") or "gptq"
        if method != "gptq" or layout not in ("gptq", "gptq_v2"):
            raise UnsupportedQuantizationError(f"quantized by {method!r} in format {layout!r}")
        bits, group_size = config.get("bits"), config.get("group_size", 128)
        if not isinstance(bits, int) or not isinstance(group_size, int):
            raise UnsupportedQuantizationError(f"bits {bits!r} with group size {group_size!r}")
        others = tuple(ModuleFormat.read(config.get("dynamic")))
        return cls(bits, group_size, zeros_minus_one=layout == "gptq", others=others)

    def of(self, name: str) -> QuantizedFormat:
        """How the linear of this name is stored."""
        for one in self.others:
            if one.pattern.match(name):
                return replace(
                    self, bits=one.bits or self.bits, group_size=one.group_size or self.group_size
                )
        return self


class QuantizedLinear(nn.Module):
    """y = x · Wᵀ + bias, W = scales[g_idx] * (code - zero), made anew in every call.

    Buffers (in features n, out features m, groups G, per = 32 / bits): qweight int32 (n / per, m),
    qzeros int32 (G, m / per), scales float16 (G, m), g_idx int32 (n,), bias (m,) or None.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, form: QuantizedFormat, *, bias: bool = True
    ) -> None:
        super().__init__()
        if in_features * form.bits % 32 or out_features * form.bits % 32:
            raise UnsupportedQuantizationError(
                f"{in_features} x {out_features} weights do not fill words of 32 bits"
            )
        size = in_features if form.group_size == -1 else form.group_size
        groups = -(-in_features // size)
        self.in_features, self.out_features, self.form = in_features, out_features, form
        whole, half = torch.int32, torch.float16
        self.register_buffer(
            "qweight", torch.zeros(in_features * form.bits // 32, out_features, dtype=whole)
        )
        self.register_buffer(
            "qzeros", torch.zeros(groups, out_features * form.bits // 32, dtype=whole)
        )
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=half))
        self.register_buffer("g_idx", torch.arange(in_features, dtype=whole) // size)
        self.register_buffer("bias", torch.zeros(out_features, dtype=half) if bias else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:  # model.bfloat16() would round them
            self.scales = scales.to(self.scales.device)
        return self

    @property
    def weight(self) -> Tensor:
        """The weight (out, in) in the scales' dtype: what code that looks for one gets."""
        return self.dequantize(self.scales.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in): one rounding, from float32 to `dtype`."""
        codes = _unpack(self.qweight, self.form.bits)
        zeros = _unpack(self.qzeros.T, self.form.bits).T
        zeros = zeros + 1 if self.form.zeros_minus_one else zeros
        group = self.g_idx.long()
        made = self.scales[group].float() * (codes - zeros[group])
        out: Tensor = made.to(dtype).t()
        return out

    def check(self, name: str) -> None:
        """Look whether the integers mean something; see `check_part`."""
        for part in ("g_idx", "qzeros"):
            self.check_part(part, getattr(self, part), name=name)

    def check_part(self, part: str, tensor: Tensor, *, name: str) -> None:
        """Look whether integers mean something, before they become a buffer of this layer.

        Raises:
            UnsupportedQuantizationError: a group that does not exist, or a v1 zero point whose bits
                are all ones: written from 0, and readers disagree about it.
        """
        if part == "g_idx" and not 0 <= int(tensor.min()) <= int(tensor.max()) < len(self.scales):
            raise UnsupportedQuantizationError(f"{name}: g_idx names groups that do not exist")
        v1_zeros = part == "qzeros" and self.form.zeros_minus_one
        if v1_zeros and int(_unpack(tensor.T, self.form.bits).max()) == 2**self.form.bits - 1:
            raise UnsupportedQuantizationError(f"{name}: a zero point has underflowed")

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bits={self.form.bits}, group_size={self.form.group_size}"
        )


def _unpack(words: Tensor, bits: int) -> Tensor:
    """Words (rows, columns) to codes (rows · 32 / bits, columns), lowest bits first.

    Codes of three bits cross the borders of words: 32 of them fill three.
    """
    span = 3 if bits == 3 else 1
    grouped = words.reshape(-1, span, words.shape[1])
    codes = []
    for at in range(0, 32 * span, bits):
        word, shift = divmod(at, 32)
        # the shift carries the sign bit along; the mask drops it again
        code = grouped[:, word] >> shift
        if shift + bits > 32:
            low = 32 - shift
            code = (code & (2**low - 1)) | (grouped[:, word + 1] << low)
        codes.append(code & (2**bits - 1))
    return torch.stack(codes, dim=1).flatten(0, 1)


def quantized_modules(names: Iterable[str]) -> dict[str, bool]:
    """Modules that a checkpoint holds packed, and whether each has a bias."""
    names = set(names)
    packed = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
    return {module: f"{module}.bias" in names for module in sorted(packed)}


def is_packed(name: str) -> bool:
    """Whether a tensor of this name belongs to a packed module and keeps its dtype."""
    return name.rpartition(".")[2] in _PARTS[:4]


def put_quantized(model: nn.Module, modules: Mapping[str, bool], form: QuantizedFormat) -> None:
    """Replace linear layers by packed ones of the same size; nothing else is touched.

    Raises:
        UnsupportedQuantizationError: a name that is no linear layer of this model.
    """
    for name, bias in modules.items():
        parent_name, _, child = name.rpartition(".")
        try:
            old = model.get_submodule(name)
        except AttributeError:
            old = None
        if not isinstance(old, nn.Linear):
            raise UnsupportedQuantizationError(f"{name} is quantized, and no linear layer here")
        new = QuantizedLinear(old.in_features, old.out_features, form.of(name), bias=bias)
        setattr(model.get_submodule(parent_name), child, new)

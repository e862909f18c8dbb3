"""Turn GPTQ's packed modules into plain weights: any layout, any architecture.

`X.qweight`, `X.qzeros`, `X.scales` and `X.g_idx` become `X.weight`, (out, in), computed in float32
and rounded once. Other float tensors are cast to the same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from conversion.casting import CastMove
from conversion.config_dtype import with_dtype, without_quantization
from conversion.errors import QuantizedError
from conversion.float_casts import CASTABLE, FLOAT_NAMES, narrow
from conversion.layouts import Layout, layout_of, read_json_file
from conversion.made_tensor import MadeTensor
from conversion.opened import OpenedSnapshot
from conversion.options import DequantizeOptions, parse_size
from conversion.qwen_vl_files import CONFIG, SideFiles, json_bytes
from conversion.rewriting import Result, Rewrite, TensorMove
from conversion.running import run_draft
from conversion.steps import format_of, rewrite_of, step_of
from conversion.tally import Tally
from model_store.checkpoint import TensorInfo
from model_store.gptq_format import BITS, Version, dequantize
from model_store.progress import Progress
from model_store.tensor_sources import TensorSource, in_memory, is_zero
from model_store.weight_rules import TensorSpec

QUANTIZE_CONFIG = "quantize_config.json"
_COLUMNS = 256  # outputs at a time, a multiple of 32: what they take in float32 is in memory
_KINDS = ("qweight", "qzeros", "scales", "g_idx")
# GPTQ tools give every linear a bias; these linears of Qwen-VL have none
_NO_BIAS = (
    "attn.c_proj.bias", "mlp.w1.bias", "mlp.w2.bias", "mlp.c_proj.bias",
    "self_attn.o_proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Packing:
    """How the modules of a checkpoint are packed."""

    bits: int
    version: Version


@dataclass(frozen=True, slots=True)
class DequantizeMove:
    """Four packed tensors become one weight."""

    sources: tuple[str, ...]  # qweight, qzeros, scales, g_idx
    target: TensorSpec
    packing: Packing
    tally: Tally

    @property
    def targets(self) -> tuple[TensorSpec, ...]:
        return (self.target,)

    @property
    def keeps_bytes(self) -> bool:
        return False

    def rearrange(self, source: Callable[[str], TensorSource]) -> list[TensorSource]:
        """Dequantize a few outputs at a time, while they are written.

        Raises:
            GptqFormatError: tensors that do not belong together.
        """
        packed = [np.asarray(in_memory(source(name)).values()) for name in self.sources]
        outputs, inputs = self.target.shape
        bits = self.packing.bits
        kind = np.uint32 if self.target.dtype == "F32" else np.uint16

        def make(first: int, last: int) -> memoryview:
            words = slice(first * bits // 32, last * bits // 32)
            columns = (slice(first, last), words, slice(first, last))
            qweight, qzeros, scales = (
                np.ascontiguousarray(tensor[:, part])
                for tensor, part in zip(packed[:3], columns, strict=True)
            )
            values = dequantize(
                qweight, qzeros, scales, packed[3], bits=bits, version=self.packing.version
            )
            made: NDArray[Any] = np.empty((last - first) * inputs, kind)
            flat = np.ascontiguousarray(values.T).reshape(-1)
            self.tally.overflow(self.target.name, narrow(flat, self.target.dtype, into=made))
            return made.view(np.uint8).data

        return [MadeTensor(self.target, units=outputs, at_once=_COLUMNS, make=make)]


def dequantize_snapshot(
    folder: Path, target: Path, options: DequantizeOptions, *, progress: Progress | None = None
) -> Result:
    """Write a GPTQ snapshot with plain weights.

    Raises:
        QuantizedError: it is not quantized, or by another method.
        GptqFormatError: packed tensors that contradict each other.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_dequantize, options, progress=progress)


def draft_dequantize(opened: OpenedSnapshot, options: DequantizeOptions) -> Rewrite:
    """Plan the dequantization; see `dequantize_snapshot`."""
    size = parse_size(options.max_shard_size)
    config = read_json_file(opened.folder / CONFIG)
    packing = _packing(opened, config)
    dtype, tally, infos = FLOAT_NAMES[options.to], Tally(), opened.infos()
    moves = _moves(infos, dtype, packing, tally)
    if not any(isinstance(move, DequantizeMove) for move in moves):
        raise QuantizedError("no tensor of this checkpoint is packed: there is no qweight")
    if layout_of(config) is not Layout.OTHER and _plain_has_no_bias(config):
        moves = _without_zero_biases(moves, opened)
    facts = {"bits": packing.bits, "checkpoint_format": packing.version}
    step = step_of("dequantize", options, opened, moves, facts)
    summary = (
        f"Changed by modelferry: weights of {packing.bits} bits were turned back into "
        f"{options.to}; what quantizing took away does not come back."
    )
    files = _files(opened, config, options.to)
    made = rewrite_of(step, moves, format_of(opened), size, files, summary)
    return replace(made, tally=tally)


def _packing(opened: OpenedSnapshot, config: Mapping[str, Any]) -> Packing:
    told = config.get("quantization_config")
    if told is None and opened.manifest.entry(QUANTIZE_CONFIG) is not None:
        told = read_json_file(opened.folder / QUANTIZE_CONFIG)
    if not isinstance(told, Mapping):
        raise QuantizedError(
            "config.json has no quantization_config: these weights are plain, as far as it says",
            hint="To change their dtype, use conversion.cast.",
        )
    method, bits = told.get("quant_method", "gptq"), told.get("bits")
    version = told.get("checkpoint_format") or "gptq"
    if method != "gptq" or bits not in BITS or version not in ("gptq", "gptq_v2"):
        raise QuantizedError(
            f"quantization_config says {method!r} {bits!r} bits {version!r}; this step knows GPTQ "
            f"of {', '.join(map(str, BITS))} bits"
        )
    return Packing(bits, cast("Version", version))


def _moves(
    infos: Mapping[str, TensorInfo], dtype: str, packing: Packing, tally: Tally
) -> list[TensorMove]:
    moves: list[TensorMove] = []
    for name, info in infos.items():
        module, _, kind = name.rpartition(".")
        packed = kind in _KINDS and f"{module}.qweight" in infos
        if packed and kind == "qweight":
            moves.append(_packed(module, infos, dtype, packing, tally))
        elif not packed:
            made = dtype if info.dtype in CASTABLE else info.dtype
            moves.append(CastMove(name, info.dtype, TensorSpec(name, made, info.shape), tally))
    return moves


def _packed(
    module: str, infos: Mapping[str, TensorInfo], dtype: str, packing: Packing, tally: Tally
) -> DequantizeMove:
    names = tuple(f"{module}.{kind}" for kind in _KINDS)
    missing = next((name for name in names if name not in infos), None)
    if missing is not None or f"{module}.weight" in infos:
        raise QuantizedError(f"{module} is half quantized: {missing or module + '.weight'}")
    words = infos[names[0]]
    expected = ("I32", "I32", "F16", "I32")
    if tuple(infos[name].dtype for name in names) != expected or len(words.shape) != 2:
        raise QuantizedError(f"{module} is not packed as GPTQ packs: {words.dtype} {words.shape}")
    shape = (words.shape[1], words.shape[0] * 32 // packing.bits)
    if shape[0] * packing.bits % 32:
        raise QuantizedError(f"{module}: {shape[0]} outputs do not fill int32 words")
    if math.prod(shape) != words.elements * 32 // packing.bits:
        raise QuantizedError(f"{module}: {words.shape} words do not hold whole codes")
    return DequantizeMove(names, TensorSpec(f"{module}.weight", dtype, shape), packing, tally)


def _plain_has_no_bias(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return not text.get("attention_out_bias", False)
    return bool(config.get("no_bias", True))


def _without_zero_biases(moves: Sequence[TensorMove], opened: OpenedSnapshot) -> list[TensorMove]:
    kept, names = [], frozenset(opened.checkpoint.names())
    for move in moves:
        name = move.sources[0]
        packed = f"{name.rpartition('.')[0]}.qweight" in names
        if not (packed and name.endswith(_NO_BIAS)):
            kept.append(move)
        elif not is_zero(opened.checkpoint.source(name)):
            raise QuantizedError(
                f"{name} is not zero, and the plain model has no bias there",
                hint="Set no_bias to false in a copy's config.json if the model really has it.",
            )
    return kept


def _files(opened: OpenedSnapshot, config: Mapping[str, Any], dtype: str) -> SideFiles:
    changed = with_dtype(without_quantization(config), dtype)
    left = {CONFIG, QUANTIZE_CONFIG}
    others = tuple(path for path in opened.companions() if path not in left)
    return SideFiles({CONFIG: json_bytes(changed)}, others)

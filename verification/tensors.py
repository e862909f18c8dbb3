"""The tensor level of the gates: what is missing, what differs, how far quantized weights are off.

It looks at bytes and values, never at a model, so an error that happens to leave the probes'
answers alone is found all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conversion.comparing import diff_checkpoints
from model_store.progress import Progress
from model_store.tensors import RawTensor
from verification.errors import NotComparableError
from verification.evidence import Finding, WeightError
from verification.folders import Subject
from verification.native_view import NativeView
from verification.packed import PARTS, GptqForm

_FLOAT16 = {"F16", "BF16", "F32"}
_NAMED = 3  # how many tensors a note names


@dataclass(frozen=True, slots=True)
class ConvertedTensors:
    """What the tensor level found on a converted candidate."""

    unpaired: Finding
    differing: Finding
    names: tuple[str, ...]  # every tensor that differs


def compare_converted(
    reference: Subject, candidate: Subject, progress: Progress
) -> ConvertedTensors:
    """Compare a converted candidate's tensors with the reference's, bit by bit."""
    report = diff_checkpoints(reference.folder, candidate.folder, progress=progress)
    unpaired = [*report.missing, *report.extra, *report.unmapped]
    differing = [t.name for t in report.mismatched] + [t.name for t in report.unequal]
    return ConvertedTensors(
        unpaired=Finding(len(unpaired), report.compared, note=_names(unpaired)),
        differing=Finding(len(differing), report.compared, note=_names(differing)),
        names=tuple(differing),
    )


@dataclass(frozen=True, slots=True)
class QuantizedTensors:
    """What the tensor level found on a quantized candidate."""

    unpaired: Finding
    kept_differing: Finding
    linears: Finding
    errors: tuple[WeightError, ...]  # worst first

    @property
    def worst_error(self) -> Finding:
        if not self.errors:
            return Finding(None, note="the candidate has no quantized linear layer")
        worst = max(self.errors, key=lambda error: error.relative)
        return Finding(worst.relative, len(self.errors), note=f"worst: {worst.name}")

    @property
    def worst_scale(self) -> Finding:
        if not self.errors:
            return Finding(None, note="the candidate has no quantized linear layer")
        worst = max(self.errors, key=lambda error: abs(error.scale - 1))
        note = f"worst: {worst.name}, {worst.scale:.3f} of the reference"
        return Finding(abs(worst.scale - 1), len(self.errors), note=note)


def compare_quantized(
    reference: Subject, candidate: Subject, progress: Progress
) -> QuantizedTensors:
    """Compare a quantized candidate's tensors with the full-precision reference's.

    Raises:
        NotComparableError: the reference is quantized itself.
        GptqFormatError: packed tensors that do not belong together.
    """
    with NativeView(reference) as a, NativeView(candidate) as b:
        if any(name.endswith(".qweight") for name in a.infos):
            raise NotComparableError(
                f"{reference.side.label} is quantized itself",
                hint="Name the snapshot that it was quantized from as the reference.",
            )
        modules = sorted(
            name.removesuffix(".qweight") for name in b.infos if name.endswith(".qweight")
        )
        unpaired = _unpaired(a, b, set(modules))
        weights = {module + ".weight" for module in modules}
        compared = len(b.infos)
        shared = sorted(set(a.infos) & set(b.infos) - weights)
        with progress.task("compare tensors", len(shared) + len(modules), unit="tensors") as task:
            differing = []
            casts = 0
            for name in shared:
                one, two = a.read(name), b.read(name)
                casts += one.dtype != two.dtype
                if not same_values(one, two):
                    differing.append(name)
                task.advance()
            errors = []
            for module in modules:
                if module + ".weight" in a.infos:
                    errors.append(_weight_error(a, b, module, candidate.form))
                task.advance()
    cast_note = f"{casts} compared after a cast to the candidate's dtype" if casts else ""
    return QuantizedTensors(
        unpaired=Finding(len(unpaired), len(a.infos), note=_names(unpaired)),
        kept_differing=Finding(
            len(differing),
            len(shared),
            note="; ".join(filter(None, (_names(differing), cast_note))),
        ),
        linears=Finding(len(modules), compared),
        errors=tuple(sorted(errors, key=lambda error: (-error.relative, error.name))),
    )


def _unpaired(a: NativeView, b: NativeView, modules: set[str]) -> list[str]:
    replaced = {f"{module}.weight" for module in modules}
    packed = {f"{module}.{part}" for module in modules for part in PARTS}
    missing = [name for name in a.infos if name not in b.infos and name not in replaced]
    incomplete = [name for name in packed if name not in b.infos]
    missing += [name for name in replaced if name not in a.infos]  # quantized from nothing
    extra = [
        name
        for name in b.infos
        if name not in a.infos and name not in packed and not _is_zero_bias(b, name, modules)
    ]
    return sorted(missing + incomplete + extra)


def _is_zero_bias(view: NativeView, name: str, modules: set[str]) -> bool:
    """Packers of 2023 write a bias of zeros for every quantized linear that has none."""
    module, _, part = name.rpartition(".")
    return part == "bias" and module in modules and not view.read(name).values().any()


def same_values(reference: RawTensor, candidate: RawTensor) -> bool:
    """Whether two tensors are equal, bit for bit, once the reference has the candidate's dtype."""
    if reference.shape != candidate.shape:
        return False
    if reference.dtype == candidate.dtype:
        return bool(np.array_equal(reference.bits(), candidate.bits()))
    if not {reference.dtype, candidate.dtype} <= _FLOAT16:
        return False
    cast, wanted = _cast(reference.values(), candidate.dtype), candidate.values()
    return bool(np.isfinite(cast).all() and np.array_equal(cast, wanted))


def _cast(values: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):  # what overflows is not finite, and the caller looks
        if dtype == "F16":
            return values.astype(np.float16)
    wide = values.astype(np.float32)
    if dtype == "F32":
        return wide
    # bf16: round to nearest, ties to even, on the upper half of the bits
    bits = wide.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _weight_error(a: NativeView, b: NativeView, module: str, form: GptqForm) -> WeightError:
    # stored (out, in); float64 sums, because the ratio is held against a few per cent
    wanted = a.read(module + ".weight").values().astype(np.float64)
    found = form.weight(b.read, module).astype(np.float64).T
    norm = float((wanted * wanted).sum())
    if wanted.shape != found.shape or norm == 0:
        same = wanted.shape == found.shape and not found.any()
        return WeightError(module, 0.0, 1.0) if same else WeightError(module, 1.0, 0.0)
    error = float(((found - wanted) ** 2).sum())
    return WeightError(module, (error / norm) ** 0.5, float((wanted * found).sum()) / norm)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

"""What stops a quantization.

QuantizationError(ToolkitError)
├── SingularHessianError     a layer's Hessian has no Cholesky factor, whatever the damping
├── UnusableTensorError      a weight or an activation that is not finite, or beyond float16
├── GroupSizeError           a layer's columns do not divide into groups, or into packed words
├── UnsupportedModelError    no decoder whose linears could be quantized
├── AlreadyQuantizedError    the source is not full precision
├── CalibrationError         the calibration set is missing, empty or malformed
├── WrittenModelError        what was written does not read back as what was computed
└── KernelDisagreesError     an installed kernel computes something else from it
"""

from __future__ import annotations

from model_store.errors import ToolkitError


class QuantizationError(ToolkitError):
    """A checkpoint could not be quantized."""


class SingularHessianError(QuantizationError):
    """The damped Hessian of one layer has no Cholesky factor; nothing falls back to rounding."""

    hint = "Raise --damping, or add calibration samples."

    def __init__(self, layer: str, *, damping: float) -> None:
        super().__init__(f"the Hessian of {layer} is singular, even at damping {damping:g}")
        self.layer, self.damping = layer, damping


class UnusableTensorError(QuantizationError):
    """A weight or an activation holds what a float16 scale cannot express."""

    hint = "Check the source with `ferry diff`, or load it with --dtype float32."


class GroupSizeError(QuantizationError):
    """The group size does not fit a layer."""

    hint = "Choose a --group-size that divides every layer's input, or -1 for one group."


class UnsupportedModelError(QuantizationError):
    """The model has no decoder layers that could be found, or not the linears it should have."""

    hint = "Quantization knows Qwen-VL, and decoders that transformers itself can build."


class AlreadyQuantizedError(QuantizationError):
    """The source holds packed integers already."""

    hint = "Name the full-precision snapshot that it was made from."


class CalibrationError(QuantizationError):
    """The calibration set is missing, empty or malformed."""

    hint = 'One JSON object a line: {"conversations": [{"from": "user", "value": "…"}, …]}.'


class WrittenModelError(QuantizationError):
    """What was written does not read back as what was computed."""

    hint = "The disk or the memory is faulty, or this is a bug; nothing was published."


class KernelDisagreesError(QuantizationError):
    """A kernel computes other outputs from the written integers than their definition."""

    hint = "Serve with another kernel; the files are what was computed, their bytes were compared."

    def __init__(self, kernel: str, linear: str, error: float) -> None:
        super().__init__(f"kernel {kernel} errs by {error:.2g} on {linear}")
        self.kernel, self.linear, self.error = kernel, linear, error

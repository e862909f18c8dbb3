"""GPTQ tensors at rest: integer codes packed into int32 words, as AutoGPTQ and its heirs do.

For a linear layer of `rows` inputs and `columns` outputs, `bits` per code and `groups` groups:
`qweight` int32 (rows·bits/32, columns) packs the codes of consecutive inputs, lowest bits first;
`qzeros` int32 (groups, columns·bits/32) packs the zero points of consecutive outputs; `scales`
float16 (groups, columns); `g_idx` int32 (rows,) names the group of each input. A weight is
`scales[g_idx[i], o] · (code[i, o] - zero[g_idx[i], o])`. Version "gptq" stores zero - 1, version
"gptq_v2" stores zero. Facts and sources: docs/formats.md.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from model_store.errors import GptqFormatError

Version = Literal["gptq", "gptq_v2"]
BITS = (2, 3, 4, 8)
_WORD = 32

Integers = NDArray[np.integer[Any]]


class PackedLinear(NamedTuple):
    """The four tensors of a quantized linear layer, as they lie on disk."""

    qweight: NDArray[np.int32]  # (rows·bits/32, columns)
    qzeros: NDArray[np.int32]  # (groups, columns·bits/32)
    scales: NDArray[np.float16]  # (groups, columns)
    g_idx: NDArray[np.int32]  # (rows,)


class UnpackedLinear(NamedTuple):
    """The same layer as plain integers."""

    codes: NDArray[np.uint8]  # (rows, columns)
    zeros: NDArray[np.uint8]  # (groups, columns)
    scales: NDArray[np.floating[Any]]  # (groups, columns), as stored
    g_idx: NDArray[np.int32]  # (rows,)


def pack(
    codes: Integers,
    zeros: Integers,
    scales: NDArray[np.floating[Any]],
    g_idx: Integers,
    *,
    bits: int,
    version: Version,
) -> PackedLinear:
    """Pack a quantized linear layer.

    Args:
        codes: (rows, columns), each 0 … 2^bits - 1; rows are inputs.
        zeros: (groups, columns), the same range; version "gptq" cannot hold 0.
        scales: (groups, columns), finite; rounded to float16.
        g_idx: (rows,), each 0 … groups - 1.
        bits: 2, 3, 4 or 8.
        version: "gptq" (zero - 1 on disk) or "gptq_v2".

    Raises:
        GptqFormatError: values or shapes that the format cannot hold.
    """
    _check_kind(bits, version)
    _check_shapes(codes, zeros, scales, g_idx, bits)
    _check_range("codes", codes, 2**bits)
    _check_range("zero points", zeros, 2**bits)
    _check_range("g_idx", g_idx, zeros.shape[0])
    if version == "gptq" and zeros.size and int(zeros.min()) == 0:
        raise GptqFormatError(
            'version "gptq" stores zero point - 1 and cannot hold a zero point of 0',
            hint='Write version "gptq_v2", or quantize symmetrically.',
        )
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(scales, dtype=np.float16)
    if not np.isfinite(half).all():
        raise GptqFormatError("a scale is not finite, or too large for float16")
    stored = zeros.astype(np.int64) - (1 if version == "gptq" else 0)
    return PackedLinear(
        qweight=_to_words(codes.astype(np.uint8), bits),
        qzeros=np.ascontiguousarray(_to_words(stored.astype(np.uint8).T, bits).T),
        scales=half,
        g_idx=np.ascontiguousarray(g_idx, dtype=np.int32),
    )


def unpack(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.floating[Any]],
    g_idx: Integers,
    *,
    bits: int,
    version: Version,
) -> UnpackedLinear:
    """Unpack a quantized linear layer, `unpack(*packed, …)`; the inverse of `pack`.

    Readers disagree about a version "gptq" zero point whose bits are all ones (written from 0), so
    it is refused.

    Raises:
        GptqFormatError: tensors that do not belong together, or such a zero point.
    """
    _check_kind(bits, version)
    _check_words(qweight, qzeros)
    codes = _from_words(qweight, bits)
    zeros = np.ascontiguousarray(_from_words(qzeros.T, bits).T)
    _check_shapes(codes, zeros, scales, g_idx, bits)
    _check_range("g_idx", g_idx, len(zeros))
    if version == "gptq":
        if zeros.size and int(zeros.max()) == 2**bits - 1:
            raise GptqFormatError('a zero point of version "gptq" has underflowed')
        zeros += 1
    return UnpackedLinear(codes, zeros, scales, np.asarray(g_idx, dtype=np.int32))


def dequantize(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.floating[Any]],
    g_idx: Integers,
    *,
    bits: int,
    version: Version,
) -> NDArray[np.float32]:
    """Return the weights, (rows, columns) = (in, out) float32; a torch linear's are transposed.

    Raises:
        GptqFormatError: see `unpack`.
    """
    plain = unpack(qweight, qzeros, scales, g_idx, bits=bits, version=version)
    weights = plain.codes.astype(np.float32)
    weights -= plain.zeros.astype(np.float32)[plain.g_idx]
    weights *= plain.scales.astype(np.float32)[plain.g_idx]
    return weights


def _check_kind(bits: int, version: str) -> None:
    if bits not in BITS:
        raise GptqFormatError(f"{bits} bits per code; the format knows {BITS}")
    if version not in get_args(Version):
        raise GptqFormatError(f"unknown GPTQ version {version!r}")


def _check_words(*words: NDArray[np.int32]) -> None:
    if any(array.dtype != np.int32 or array.ndim != 2 for array in words):
        raise GptqFormatError("qweight and qzeros are matrices of int32 words")


def _check_shapes(codes: Any, zeros: Any, scales: Any, g_idx: Any, bits: int) -> None:
    if codes.ndim != 2 or zeros.ndim != 2 or g_idx.shape != codes.shape[:1]:
        raise GptqFormatError(f"codes {codes.shape}, zeros {zeros.shape}, g_idx {g_idx.shape}")
    if zeros.shape != scales.shape or zeros.shape[1] != codes.shape[1]:
        raise GptqFormatError(
            f"codes {codes.shape}, zeros {zeros.shape} and scales {scales.shape} do not fit"
        )
    if any(size * bits % _WORD for size in codes.shape):
        raise GptqFormatError(f"{codes.shape} codes of {bits} bits do not fill int32 words")


def _check_range(what: str, values: Any, limit: int) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise GptqFormatError(f"{what} are {values.dtype}, not integers")
    if values.size and (int(values.min()) < 0 or int(values.max()) >= limit):
        raise GptqFormatError(f"{what} are not all in 0 … {limit - 1}")


def _period(bits: int) -> tuple[int, int]:
    """How many values fill how many words before the pattern repeats: 32 in 3 for 3 bits."""
    shared = math.gcd(bits, _WORD)
    return _WORD // shared, bits // shared


def _to_words(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack along the first axis: value k takes bits k·b … k·b + b - 1 of the words' bit stream."""
    per_period, span = _period(bits)
    wide = values.reshape(-1, per_period, values.shape[1]).astype(np.uint32)
    words = np.zeros((len(wide), span, values.shape[1]), dtype=np.uint32)
    for k in range(per_period):
        word, shift = divmod(k * bits, _WORD)
        words[:, word] |= wide[:, k] << shift
        if shift + bits > _WORD:
            words[:, word + 1] |= wide[:, k] >> (_WORD - shift)
    return words.reshape(-1, values.shape[1]).view(np.int32)


def _from_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    per_period, span = _period(bits)
    if len(words) % span:
        raise GptqFormatError(f"{len(words)} words do not hold whole codes of {bits} bits")
    grouped = np.ascontiguousarray(words).view(np.uint32).reshape(-1, span, words.shape[1])
    values = np.empty((len(grouped), per_period, words.shape[1]), dtype=np.uint8)
    for k in range(per_period):
        word, shift = divmod(k * bits, _WORD)
        field = grouped[:, word] >> shift
        if shift + bits > _WORD:
            field |= grouped[:, word + 1] << (_WORD - shift)
        values[:, k] = field & (2**bits - 1)
    return values.reshape(-1, words.shape[1])

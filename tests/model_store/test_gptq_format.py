"""GPTQ tensors: AutoGPTQ's own packing is the reference, and a slow reading of the format text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.errors import GptqFormatError
from model_store.gptq_format import (
    BITS,
    PackedLinear,
    Version,
    dequantize,
    pack,
    unpack,
)

SHARED = Path(__file__).parents[3] / "shared" / "qwen_vl" / "public" / "gptq.npz"
VERSIONS: tuple[Version, ...] = ("gptq", "gptq_v2")


def layer(
    bits: int, *, rows: int = 64, columns: int = 96, groups: int = 2
) -> dict[str, NDArray[Any]]:
    numbers = np.random.default_rng(bits)
    return {
        "codes": numbers.integers(0, 2**bits, (rows, columns)),
        "zeros": numbers.integers(1, 2**bits, (groups, columns)),
        "scales": (numbers.random((groups, columns)) + 0.01).astype(np.float16),
        "g_idx": numbers.integers(0, groups, rows),
    }


def field(words: NDArray[Any], place: int, bits: int) -> int:
    """Value `place` of a run of int32 words, bit by bit: the format's definition."""
    value = 0
    for bit in range(bits):
        word, shift = divmod(place * bits + bit, 32)
        value |= ((int(words[word]) >> shift) & 1) << bit
    return value


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", BITS)
def test_every_field_lies_where_the_format_says(bits: int, version: Version) -> None:
    plain = layer(bits)

    packed = pack(**plain, bits=bits, version=version)

    assert packed.qweight.shape == (64 * bits // 32, 96)
    assert packed.qzeros.shape == (2, 96 * bits // 32)
    less = 1 if version == "gptq" else 0
    for row, column in [(0, 0), (1, 5), (10, 95), (31, 7), (63, 95)]:
        assert field(packed.qweight[:, column], row, bits) == plain["codes"][row, column]
        group = row % 2
        assert field(packed.qzeros[group], column, bits) == plain["zeros"][group, column] - less


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("bits", BITS)
def test_unpacking_gives_back_what_was_packed(bits: int, version: Version) -> None:
    plain = layer(bits)

    again = unpack(*pack(**plain, bits=bits, version=version), bits=bits, version=version)

    for name, values in plain.items():
        assert np.array_equal(getattr(again, name), values), name


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_follow_the_formula(version: Version) -> None:
    plain = layer(4)

    weights = dequantize(*pack(**plain, bits=4, version=version), bits=4, version=version)

    group = plain["g_idx"]
    centred = plain["codes"] - plain["zeros"][group]
    expected = plain["scales"].astype(np.float32)[group] * centred.astype(np.float32)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, expected)


def test_symmetric_zero_points_are_the_words_that_autogptq_writes() -> None:
    plain = layer(4) | {"zeros": np.full((2, 96), 8)}

    one = pack(**plain, bits=4, version="gptq").qzeros
    two = pack(**plain, bits=4, version="gptq_v2").qzeros

    assert set(one.ravel().tolist()) == {0x77777777}
    assert set(two.view(np.uint32).ravel().tolist()) == {0x88888888}


@pytest.mark.parametrize("columns", [slice(0, 32), slice(32, 64), slice(64, 96)])
def test_columns_split_without_requantizing(columns: slice) -> None:
    packed = pack(**layer(4), bits=4, version="gptq")
    words = slice(columns.start // 8, columns.stop // 8)

    part = PackedLinear(
        packed.qweight[:, columns], packed.qzeros[:, words], packed.scales[:, columns], packed.g_idx
    )

    whole = dequantize(*packed, bits=4, version="gptq")
    assert np.array_equal(dequantize(*part, bits=4, version="gptq"), whole[:, columns])


def test_version_one_cannot_hold_a_zero_point_of_zero() -> None:
    plain = layer(4)
    plain["zeros"][1, 3] = 0

    with pytest.raises(GptqFormatError, match="cannot hold a zero point of 0"):
        pack(**plain, bits=4, version="gptq")
    assert (
        unpack(*pack(**plain, bits=4, version="gptq_v2"), bits=4, version="gptq_v2").zeros[1, 3]
        == 0
    )


def test_an_underflowed_zero_point_is_not_guessed() -> None:
    plain = layer(4)
    plain["zeros"][0, 0] = 0
    packed = pack(**plain, bits=4, version="gptq_v2")
    underflowed = packed._replace(qzeros=packed.qzeros | 0xF)

    with pytest.raises(GptqFormatError, match="underflowed"):
        unpack(*underflowed, bits=4, version="gptq")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codes": np.full((64, 96), 16)}, "codes"),
        ({"codes": np.full((64, 96), -1)}, "codes"),
        ({"codes": np.ones((64, 96))}, "not integers"),
        ({"codes": np.ones((60, 96), dtype=int), "g_idx": np.zeros(60, dtype=int)}, "int32 words"),
        ({"codes": np.ones((64, 32), dtype=int)}, "do not fit"),
        ({"zeros": np.full((2, 96), 16)}, "zero points"),
        ({"scales": np.full((2, 96), 1e6)}, "not finite"),
        ({"scales": np.full((2, 96), np.nan)}, "not finite"),
        ({"g_idx": np.full(64, 2)}, "g_idx"),
        ({"g_idx": np.zeros(63, dtype=int)}, "g_idx"),
    ],
)  # fmt: skip
def test_values_outside_the_format_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(GptqFormatError, match=says):
        pack(**(layer(4) | change), bits=4, version="gptq")


def test_unknown_bits_and_versions_are_refused() -> None:
    with pytest.raises(GptqFormatError, match="5 bits"):
        pack(**layer(4), bits=5, version="gptq")
    with pytest.raises(GptqFormatError, match="marlin"):
        pack(**layer(4), bits=4, version=cast("Version", "marlin"))


def test_words_that_are_not_int32_are_refused() -> None:
    packed = pack(**layer(4), bits=4, version="gptq")

    with pytest.raises(GptqFormatError, match="int32"):
        unpack(*packed._replace(qweight=packed.qweight.astype(np.int64)), bits=4, version="gptq")


@pytest.mark.shared
@pytest.mark.parametrize("case", ["sym_g128", "sym_g32", "asym_g64", "dead_column"])
def test_autogptqs_own_tensors_are_read_and_written_bit_for_bit(case: str) -> None:
    if not SHARED.is_file():
        pytest.skip(f"golden data is not beside the checkout: {SHARED.name}")
    golden = np.load(SHARED)
    parts = ("qweight", "qzeros", "scales_f16", "g_idx")
    packed = PackedLinear(*(golden[f"{case}/{part}"] for part in parts))

    plain = unpack(*packed, bits=4, version="gptq")
    again = pack(*plain, bits=4, version="gptq")
    weights = dequantize(*packed, bits=4, version="gptq")

    for part in PackedLinear._fields:
        assert np.array_equal(getattr(packed, part), getattr(again, part)), part
    assert np.array_equal(plain.zeros.T, golden[f"{case}/zero"])
    # the golden weights used the scale before it was rounded to float16
    expected = golden[f"{case}/dequant_f16"].T.astype(np.float32)
    np.testing.assert_allclose(weights, expected, rtol=2**-9, atol=2**-20)

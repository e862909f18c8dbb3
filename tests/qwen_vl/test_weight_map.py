import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.errors import UnmappedTensorError
from model_store.tensors import RawTensor, from_bits
from model_store.weight_rules import moved, planned
from qwen_vl.weight_map import RULES, native_plan, original_plan

_SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "qwen_vl" / "full"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "int32": "I32"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Info:
    dtype: str
    shape: tuple[int, ...]


def _published(name: str) -> dict[str, _Info]:
    if not _SHARED.is_dir():
        pytest.skip("the golden data is not beside this checkout")
    table = json.loads((_SHARED / name).read_text(encoding="utf-8"))
    table = table.get("expected_tensors", table)
    return {k: _Info(_DTYPES[v["dtype"]], tuple(v["shape"])) for k, v in table.items()}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "tensors"), [("state_dict_bf16.json", 853), ("int4_layout.json", 1461)]
)
def test_every_published_name_is_mapped_there_and_back(name: str, tensors: int) -> None:
    original = _published(name)
    assert len(original) == tensors

    native = planned(native_plan(original, vision_heads=16))
    back = planned(original_plan(native, vision_heads=16))

    assert {k: (v.dtype, v.shape) for k, v in back.items()} == {
        k: (v.dtype, v.shape) for k, v in original.items()
    }
    assert not any("transformer" in target for target in native)
    sizes = [np.prod(v.shape) for k, v in native.items() if not k.endswith("g_idx")]
    assert sum(sizes) == sum(
        np.prod(v.shape) for k, v in original.items() if not k.endswith("g_idx")
    )


@pytest.mark.shared
def test_published_shapes_become_the_shapes_of_a_stock_decoder() -> None:
    native = planned(native_plan(_published("state_dict_bf16.json"), vision_heads=16))

    layer = "model.language_model.layers.31."
    assert native[layer + "self_attn.k_proj.weight"].shape == (4096, 4096)
    assert native[layer + "self_attn.k_proj.bias"].shape == (4096,)
    assert native[layer + "mlp.gate_proj.weight"].shape == (11008, 4096)
    assert native["model.vision_tower.layers.47.self_attn.q_proj.bias"].shape == (1664,)
    assert native["model.multi_modal_projector.kv_proj.weight"].shape == (4096, 1664)


@pytest.mark.shared
def test_published_int4_modules_are_split_along_their_columns() -> None:
    native = planned(native_plan(_published("int4_layout.json"), vision_heads=16))

    module = "model.language_model.layers.0.self_attn.v_proj."
    found = {k.removeprefix(module): v.shape for k, v in native.items() if k.startswith(module)}
    assert found == {
        "qweight": (512, 4096),
        "qzeros": (32, 512),
        "scales": (32, 4096),
        "g_idx": (4096,),
        "bias": (4096,),
    }


def test_the_table_names_everything_once() -> None:
    sources = [rule.source for rule in RULES]
    targets = [target for rule in RULES for target in rule.targets]

    assert len(set(sources)) == len(sources)
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.rotary_emb.inv_freq",
        "transformer.h.0.mlp.w3.weight",
        "transformer.visual.transformer.resblocks.0.attn.in_proj_weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.language_model.norm.weight",
    ],
)
def test_a_name_of_another_architecture_is_refused(name: str) -> None:
    with pytest.raises(UnmappedTensorError):
        native_plan({name: _Info("BF16", (6, 6))}, vision_heads=1)


# What the tensors mean, computed from the 2023 names by the published description and from the
# native ones as engines of today read them: a round trip alone would not notice a wrong name.


def _tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, RawTensor]:
    rng = np.random.default_rng(11)
    return {name: from_bits("F64", rng.standard_normal(shape)) for name, shape in shapes.items()}


def _native(
    original: dict[str, RawTensor], *, heads: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    made = moved(native_plan(original, vision_heads=heads), original.__getitem__)
    return (
        {name: np.asarray(tensor.values(), np.float64) for name, tensor in original.items()},
        {name: np.asarray(tensor.values(), np.float64) for name, tensor in made},
    )


def _silu(x: Floats) -> Floats:
    silu: Floats = x / (1 + np.exp(-x))
    return silu


def test_the_mlp_of_a_stock_decoder_computes_what_the_original_block_computes() -> None:
    was, now = _native(
        _tensors(
            {
                "transformer.h.5.mlp.w1.weight": (6, 4),
                "transformer.h.5.mlp.w2.weight": (6, 4),
                "transformer.h.5.mlp.c_proj.weight": (4, 6),
            }
        ),
        heads=1,
    )
    x = np.random.default_rng(1).standard_normal((3, 4))

    h = "transformer.h.5.mlp."
    expected = (x @ was[h + "w1.weight"].T) * _silu(x @ was[h + "w2.weight"].T)
    expected = expected @ was[h + "c_proj.weight"].T

    n = "model.language_model.layers.5.mlp."
    actual = _silu(x @ now[n + "gate_proj.weight"].T) * (x @ now[n + "up_proj.weight"].T)
    actual = actual @ now[n + "down_proj.weight"].T
    np.testing.assert_array_equal(actual, expected)


def test_the_decoder_projects_the_same_queries_keys_and_values() -> None:
    was, now = _native(
        _tensors(
            {
                "transformer.h.0.attn.c_attn.weight": (12, 4),
                "transformer.h.0.attn.c_attn.bias": (12,),
                "transformer.h.0.attn.c_proj.weight": (4, 4),
            }
        ),
        heads=1,
    )
    x = np.random.default_rng(2).standard_normal((3, 4))

    # 2023: mixed = c_attn(x); query, key, value = mixed.split(hidden_size)
    mixed = (
        x @ was["transformer.h.0.attn.c_attn.weight"].T + was["transformer.h.0.attn.c_attn.bias"]
    )

    n = "model.language_model.layers.0.self_attn."
    for position, letter in enumerate("qkv"):
        actual = x @ now[f"{n}{letter}_proj.weight"].T + now[f"{n}{letter}_proj.bias"]
        np.testing.assert_allclose(actual, mixed[:, 4 * position : 4 * position + 4], rtol=1e-13)
    np.testing.assert_array_equal(
        now[n + "o_proj.weight"], was["transformer.h.0.attn.c_proj.weight"]
    )


def test_the_vision_tower_gives_each_head_its_own_query_key_and_value() -> None:
    heads, head_dim, width = 3, 2, 6
    block = "transformer.visual.transformer.resblocks.1.attn.in_proj."
    was, now = _native(
        _tensors({block + "weight": (3 * width, width), block + "bias": (3 * width,)}), heads=heads
    )
    x = np.random.default_rng(3).standard_normal((4, width))

    # 2023: in_proj(x).view(tokens, heads, 3 * head_dim).split(head_dim, -1)
    mixed = (x @ was[block + "weight"].T + was[block + "bias"]).reshape(4, heads, 3 * head_dim)

    n = "model.vision_tower.layers.1.self_attn."
    for position, letter in enumerate("qkv"):
        actual = x @ now[f"{n}{letter}_proj.weight"].T + now[f"{n}{letter}_proj.bias"]
        expected = mixed[..., head_dim * position : head_dim * (position + 1)]
        np.testing.assert_allclose(actual.reshape(4, heads, head_dim), expected, rtol=1e-13)


def test_the_resampler_stacks_its_projections_and_ends_in_a_linear() -> None:
    pool = "transformer.visual.attn_pool.attn."
    was, now = _native(
        _tensors(
            {
                pool + "in_proj_weight": (12, 4),
                pool + "in_proj_bias": (12,),
                "transformer.visual.proj": (4, 5),
            }
        ),
        heads=2,
    )
    x = np.random.default_rng(4).standard_normal((3, 4))

    n = "model.multi_modal_projector."
    for position, letter in enumerate("qkv"):
        rows = slice(4 * position, 4 * position + 4)
        np.testing.assert_array_equal(
            now[f"{n}attention.{letter}_proj.weight"], was[pool + "in_proj_weight"][rows]
        )
        np.testing.assert_array_equal(
            now[f"{n}attention.{letter}_proj.bias"], was[pool + "in_proj_bias"][rows]
        )
    np.testing.assert_allclose(
        x @ now[n + "output_proj.weight"].T, x @ was["transformer.visual.proj"], rtol=1e-13
    )


def test_int4_query_key_and_value_dequantize_to_the_columns_of_the_fused_module() -> None:
    rng = np.random.default_rng(5)
    rows, columns, group = 16, 24, 8
    module = "transformer.h.0.attn.c_attn."
    words = rng.integers(0, 2**32, (rows // 8, columns), dtype=np.uint32)
    zeros = rng.integers(0, 2**32, (rows // group, columns // 8), dtype=np.uint32)
    original = {
        module + "qweight": from_bits("I32", words),
        module + "qzeros": from_bits("I32", zeros),
        module + "scales": from_bits("F16", rng.random((rows // group, columns)).astype("f2")),
        module + "g_idx": from_bits("I32", np.arange(rows, dtype=np.int32) // group),
        module + "bias": from_bits("F16", rng.random(columns).astype("f2")),
    }

    native = dict(moved(native_plan(original, vision_heads=1), original.__getitem__))

    whole = _dequantize(original, module)
    for position, letter in enumerate("qkv"):
        part = _dequantize(native, f"model.language_model.layers.0.self_attn.{letter}_proj.")
        np.testing.assert_array_equal(part, whole[:, 8 * position : 8 * position + 8])


def _dequantize(tensors: Mapping[str, RawTensor], module: str) -> Floats:
    """scale * (code - (stored zero + 1)), element by element: (in, out)."""
    words, zeros = tensors[module + "qweight"].bits(), tensors[module + "qzeros"].bits()
    scales, groups = tensors[module + "scales"].values(), tensors[module + "g_idx"].values()
    weights = np.empty((len(groups), words.shape[1]))
    for i, o in np.ndindex(weights.shape):
        code = int(words[i // 8, o]) >> (4 * (i % 8)) & 15
        zero = int(zeros[groups[i], o // 8]) >> (4 * (o % 8)) & 15
        weights[i, o] = float(scales[groups[i], o]) * (code - (zero + 1))
    return weights

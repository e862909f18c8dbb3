import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from model_store.gptq_format import dequantize
from qwen_vl.errors import UnsupportedQuantizationError
from qwen_vl.int4 import QuantizedFormat, QuantizedLinear, put_quantized
from qwen_vl.loading import load_model
from tests.qwen_vl import golden_weights, tiny_model
from tests.qwen_vl.model_goldens import SHARED
from tests.qwen_vl.text_goldens import ASSETS

GROUP = 16
CONFIG = {"bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, "quant_method": "gptq"}
RECORDED_PACKED = ("sym_g128", "sym_g32", "asym_g64", "dead_column")
RECORDED = (*RECORDED_PACKED, "sym_actorder_g32_static")
PACKED = ("c_attn", "attn.c_proj", "w1", "w2", "mlp.c_proj")


def pack(codes: Tensor) -> Tensor:
    """Codes (words, 8) to int32 words, one nibble after the other."""
    words = torch.zeros(len(codes), dtype=torch.int64)
    for place in range(8):
        words |= codes[:, place].long() << 4 * place
    return torch.where(words >= 2**31, words - 2**32, words).int()


def quantized(weight: Tensor, group: int = GROUP) -> tuple[dict[str, Tensor], Tensor]:
    """AutoGPTQ tensors of a (out, in) weight by rounding, and the weight they stand for."""
    rows, columns = weight.shape
    grouped = weight.reshape(rows, columns // group, group)
    scales = (grouped.abs().amax(-1) / 7).half()
    codes = (grouped / scales[..., None].float() + 8).round().clamp(0, 15)
    exact = (scales[..., None].float() * (codes - 8)).reshape(rows, columns)
    by_input = codes.reshape(rows, columns).T.reshape(columns // 8, 8, rows)
    qweight = pack(by_input.transpose(1, 2).reshape(-1, 8)).reshape(columns // 8, rows)
    zeros = torch.full((columns // group, rows // 8), 0x77777777, dtype=torch.int32)
    return {
        "qweight": qweight,
        "qzeros": zeros,
        "scales": scales.T.contiguous(),
        "g_idx": (torch.arange(columns) // group).int(),
        "bias": torch.zeros(rows, dtype=torch.float16),
    }, exact


def write_int4_folders(
    place: Path, *, in_config: bool = True, group: int = GROUP
) -> tuple[Path, Path]:
    """A GPTQ folder, and a float32 one of the weights that it stands for."""
    packed: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    for name, tensor in tiny_model.tensors().items():
        module = name.removesuffix(".weight")
        if module.endswith(PACKED) and ".h." in module and name != module:
            parts, exact[name] = quantized(tensor, group)
            packed |= {f"{module}.{leaf}": part for leaf, part in parts.items()}
        else:
            packed[name], exact[name] = tensor.half(), tensor.half().float()
    for name in [name for name in packed if name.endswith("c_attn.bias")]:
        packed[name] = exact[name].half()
    config = CONFIG | {"group_size": group}
    described = {"quantization_config": config} if in_config else {}
    int4 = tiny_model.write_small_folder(place / "int4", torch_dtype="float16", **described)
    if not in_config:
        (int4 / "quantize_config.json").write_text(json.dumps(config))
    full = tiny_model.write_small_folder(place / "full")
    save_file(packed, int4 / "model.safetensors")
    save_file(exact, full / "model.safetensors")
    return int4, full


@pytest.mark.parametrize("case", RECORDED_PACKED)
def test_dequantized_weights_are_those_of_autogptq(case: str) -> None:
    with np.load(ASSETS / "gptq.npz") as numbers:
        kept = {
            key.split("/")[1]: torch.from_numpy(numbers[key])
            for key in numbers
            if key.startswith(f"{case}/")
        }
    rows, columns = kept["dequant_f16"].shape
    groups = len(kept["scales_f16"])
    layer = QuantizedLinear(columns, rows, QuantizedFormat(4, columns // groups), bias=False)
    for ours, theirs in (("qweight", "qweight"), ("qzeros", "qzeros"), ("scales", "scales_f16")):
        assert getattr(layer, ours).shape == kept[theirs].shape
        setattr(layer, ours, kept[theirs])
    assert torch.equal(layer.g_idx, kept["g_idx"])

    made = layer.dequantize(torch.float16)

    torch.testing.assert_close(made, kept["dequant_f16"], rtol=1e-3, atol=2e-4)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ layer.dequantize(torch.float32).T)


@pytest.mark.parametrize("case", RECORDED_PACKED)
def test_unpacking_agrees_with_the_store_bit_for_bit(case: str) -> None:
    with np.load(ASSETS / "gptq.npz") as numbers:
        packed = [numbers[f"{case}/{key}"] for key in ("qweight", "qzeros", "scales_f16", "g_idx")]
    columns, groups = len(packed[3]), len(packed[2])
    form = QuantizedFormat(4, columns // groups)
    layer = QuantizedLinear(columns, packed[0].shape[1], form, bias=False)
    for name, array in zip(("qweight", "qzeros", "scales", "g_idx"), packed, strict=True):
        setattr(layer, name, torch.from_numpy(array))

    layer.check(case)

    expected = torch.from_numpy(dequantize(*packed, bits=4, version="gptq"))
    assert torch.equal(layer.dequantize(torch.float32).T, expected)


@pytest.mark.shared
@pytest.mark.parametrize("case", RECORDED_PACKED)
def test_a_forward_pass_is_that_of_autogptq(case: str) -> None:
    place = SHARED / "public"
    if not place.is_dir():
        pytest.skip("the golden data is not beside the checkout")
    recorded = json.loads((place / "gptq.json").read_text())
    config = recorded["cases"][case]["config"]
    with np.load(place / "gptq.npz") as numbers:
        kept = {key: numbers[f"{case}/{key}"] for key in ("qweight", "qzeros", "scales_f16")}
        expected = torch.from_numpy(numbers[f"{case}/forward_f32_first_batch"])
    layer = QuantizedLinear(
        config["inf"], config["outf"], QuantizedFormat(4, config["gs"]), bias=False
    )
    for ours, theirs in (("qweight", "qweight"), ("qzeros", "qzeros"), ("scales", "scales_f16")):
        setattr(layer, ours, torch.from_numpy(kept[theirs]))

    made = layer(first_batch(case, config, recorded["salt"]))

    torch.testing.assert_close(made, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.shared
def test_a_case_with_static_groups_stands_for_the_recorded_weights() -> None:
    """This case was recorded unpacked: its codes follow from scales, zeros and weights."""
    place = SHARED / "public"
    if not place.is_dir():
        pytest.skip("the golden data is not beside the checkout")
    with np.load(place / "gptq.npz") as numbers:
        kept = {
            key: torch.from_numpy(numbers[f"sym_actorder_g32_static/{key}"])
            for key in ("scale", "zero", "g_idx", "dequant_f16")
        }
    weight, group = kept["dequant_f16"].float(), kept["g_idx"].long()
    codes = (weight / kept["scale"][:, group] + kept["zero"][:, group]).round().T
    layer = QuantizedLinear(128, 64, QuantizedFormat(4, 32), bias=False)
    layer.qweight = pack(codes.reshape(16, 8, 64).transpose(1, 2).reshape(-1, 8)).reshape(16, 64)
    layer.qzeros = pack((kept["zero"].T - 1).reshape(-1, 8)).reshape(4, 8)
    layer.scales, layer.g_idx = kept["scale"].T.half(), kept["g_idx"].int()

    made = layer.dequantize(torch.float32)

    torch.testing.assert_close(made, weight, rtol=1e-3, atol=2e-4)


def first_batch(case: str, config: dict[str, Any], salt: str) -> Tensor:
    """The inputs that gptq.json describes."""
    width, rows = config["inf"], config["n"] * config["tok"]
    z = golden_weights.weight(f"gptq.{case}.calib.weight", (rows, width), salt)
    z = z.astype(np.float32) * np.sqrt(np.float32(width))
    mix = golden_weights.weight(f"gptq.{case}.mix.weight", (width, width), salt)
    x = (z + 0.7 * (z @ mix)).astype(np.float32)
    x[:, config.get("dead", [])] = 0
    return torch.from_numpy(x[: config["tok"]]).half().float()


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [("qzeros", -1, "zero point has underflowed"), ("g_idx", 99, "groups that do not exist")],
)
def test_integers_that_mean_nothing_are_refused_as_by_the_store(
    part: str, value: int, says: str, tmp_path: Path
) -> None:
    int4, _ = write_int4_folders(tmp_path)
    weights = load_file(int4 / "model.safetensors")
    weights[f"transformer.h.1.mlp.w2.{part}"].view(-1)[0] = value
    save_file(weights, int4 / "model.safetensors")

    with pytest.raises(UnsupportedQuantizationError, match=rf"layers\.1\.mlp\.gate_proj.*{says}"):
        load_model(int4)


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModel])
def test_an_int4_folder_is_saved_natively_and_loads_through_the_auto_classes(
    auto: Any, tmp_path: Path
) -> None:
    int4, _ = write_int4_folders(tmp_path, in_config=False)
    model = load_model(int4)

    model.save_pretrained(tmp_path / "native")
    again = auto.from_pretrained(tmp_path / "native")

    saved = json.loads((tmp_path / "native" / "config.json").read_text())
    assert saved["model_type"] == "qwen_vl"
    assert saved["quantization_config"] == CONFIG
    wanted = (model.model if auto is AutoModel else model).state_dict()
    loaded = again.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    assert same_logits(load_model(tmp_path / "native"), model)


def same_logits(first: nn.Module, second: nn.Module) -> bool:
    ids = tiny_model.text_ids(9)[None]
    with torch.no_grad():
        return torch.equal(first(ids).logits, second(ids).logits)


@pytest.mark.parametrize("in_config", [True, False], ids=["config.json", "quantize_config.json"])
def test_an_int4_folder_computes_what_its_weights_stand_for(
    in_config: bool, tmp_path: Path
) -> None:
    int4, full = write_int4_folders(tmp_path, in_config=in_config)
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(20)])[None]
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    model, reference = load_model(int4, dtype="float32"), load_model(full)

    layer = model.model.language_model.layers[1].self_attn.v_proj
    assert isinstance(layer, QuantizedLinear)
    assert torch.equal(
        layer.dequantize(torch.float32),
        reference.model.language_model.layers[1].self_attn.v_proj.weight,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, pixels).logits, reference(ids, pixels).logits, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_half_precision_keeps_integers_and_scales(dtype: str | None, tmp_path: Path) -> None:
    int4, _ = write_int4_folders(tmp_path)

    model = load_model(int4, dtype=dtype)

    wanted = torch.bfloat16 if dtype else torch.float16
    layer = model.model.language_model.layers[0].mlp.down_proj
    assert isinstance(layer, QuantizedLinear)
    assert (layer.scales.dtype, layer.qweight.dtype) == (torch.float16, torch.int32)
    assert model.lm_head.weight.dtype == wanted
    assert torch.isfinite(model(tiny_model.text_ids(9)[None]).logits).all()


def test_a_cast_does_not_round_the_scales() -> None:
    layer = QuantizedLinear(16, 8, QuantizedFormat(4, 16))
    layer.scales = torch.full((1, 8), 0.1001, dtype=torch.float16)
    before = layer.scales.clone()

    layer.bfloat16()

    assert torch.equal(layer.scales, before)


def test_v2_stores_the_zero_point_itself() -> None:
    v1, v2 = (
        QuantizedLinear(8, 8, QuantizedFormat(4, 8, zeros_minus_one=v)) for v in (True, False)
    )
    for layer, word in ((v1, 0x77777777), (v2, -0x77777778)):  # 0x88888888 as int32
        layer.scales = torch.ones(1, 8, dtype=torch.float16)
        layer.qzeros = torch.full((1, 1), word, dtype=torch.int32)

    assert torch.equal(v1.dequantize(torch.float32), v2.dequantize(torch.float32))
    assert set(v1.weight.flatten().tolist()) == {-8.0}


@pytest.mark.parametrize(
    "change",
    [{"bits": 5}, {"bits": None}, {"quant_method": "awq"}, {"format": "marlin"}, {"group_size": 0}],
)
def test_other_quantizations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnsupportedQuantizationError) as caught:
        QuantizedFormat.from_config(CONFIG | change)

    assert caught.value.hint


def test_only_linear_layers_are_replaced() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(8)})

    for name in ("norm", "absent"):
        with pytest.raises(UnsupportedQuantizationError, match=name):
            put_quantized(model, {name: True}, QuantizedFormat())

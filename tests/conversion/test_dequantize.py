"""Packed modules become the weights that a plain reading of the format gives."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion.dequantizing import DequantizeMove, Packing, dequantize_snapshot
from conversion.diff import diff_checkpoints
from conversion.errors import QuantizedError
from conversion.options import DequantizeOptions, ToTransformersOptions
from conversion.steps import to_transformers
from conversion.tally import Tally
from model_store.checkpoint import open_checkpoint
from model_store.gptq_format import dequantize, pack
from model_store.tensor_sources import in_memory
from model_store.tensors import from_bits
from model_store.weight_rules import TensorSpec
from qwen_vl.loading import load_model
from tests.conversion import published


def _int4(folder: Path, *, zero_biases: bool = True) -> tuple[Path, dict[str, torch.Tensor]]:
    state = published.tensors(int4=True)
    for name, tensor in state.items():
        linear = name.startswith("transformer.h.") and name.endswith(".bias")
        if linear and "c_attn" not in name and zero_biases:
            tensor.zero_()
        if name.endswith(".qzeros"):  # 8 - 1 in every place, as symmetric GPTQ writes it
            tensor.fill_(0x77777777)
    published.write_files(folder, state, published.config(int4=True), kind="bin")
    published.make_manifest(folder)
    return folder, state


def _by_hand(state: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    """(out, in) float32, one code at a time."""
    words = state[f"{module}.qweight"].numpy().view(np.uint32)
    codes = np.stack([words >> (4 * k) & 15 for k in range(8)], axis=1)
    codes = codes.reshape(-1, words.shape[1]).astype(np.float32)
    scales = state[f"{module}.scales"].float().numpy()[state[f"{module}.g_idx"].numpy()]
    return torch.from_numpy(((codes - 8) * scales).T.copy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_what_the_format_says(tmp_path: Path, dtype: str) -> None:
    source, state = _int4(tmp_path / "s")

    made = dequantize_snapshot(source, tmp_path / "t", DequantizeOptions("s", to=dtype)).folder

    kind = getattr(torch, dtype)
    found = torch.load(made / "pytorch_model.bin", weights_only=True)
    for module in ("h.0.attn.c_attn", "h.1.mlp.c_proj"):
        name = f"transformer.{module}"
        assert torch.equal(found[f"{name}.weight"], _by_hand(state, name).to(kind))
    assert {tensor.dtype for tensor in found.values()} == {kind}
    assert found.keys() == published.tensors().keys()
    config = json.loads((made / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == dtype


def test_both_layouts_become_the_same_model_and_it_loads(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source, _ = _int4(tmp_path / "s")
    packed = to_transformers(source, tmp_path / "n", ToTransformersOptions("s")).folder
    options = DequantizeOptions("s", to="float32")

    plain = dequantize_snapshot(source, tmp_path / "plain", options).folder
    native = dequantize_snapshot(packed, tmp_path / "native", options).folder

    assert diff_checkpoints(plain, native).identical
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = load_model(packed, dtype="float32")(input_ids=ids).logits
        actual = load_model(native, dtype="float32")(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_dequantized_snapshot_goes_on_to_the_native_layout(tmp_path: Path) -> None:
    source, _ = _int4(tmp_path / "s")

    plain = dequantize_snapshot(source, tmp_path / "t", DequantizeOptions("s")).folder
    native = to_transformers(plain, tmp_path / "n", ToTransformersOptions("t")).folder

    assert diff_checkpoints(plain, native).identical
    with open_checkpoint(native) as checkpoint:
        assert checkpoint.info("lm_head.weight").dtype == "BF16"


def test_plain_weights_and_other_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizedError, match="plain"):
        dequantize_snapshot(
            published.make_snapshot(tmp_path / "s"), tmp_path / "t", DequantizeOptions("s")
        )
    state, values = published.tensors(int4=True), published.config(int4=True)
    values["quantization_config"]["quant_method"] = "awq"
    published.write_files(tmp_path / "awq", state, values, kind="bin")
    published.make_manifest(tmp_path / "awq")
    with pytest.raises(QuantizedError, match="awq"):
        dequantize_snapshot(tmp_path / "awq", tmp_path / "t", DequantizeOptions("s"))
    assert not (tmp_path / "t").exists()


def test_a_bias_that_the_plain_model_cannot_hold_is_refused(tmp_path: Path) -> None:
    source, _ = _int4(tmp_path / "s", zero_biases=False)

    with pytest.raises(QuantizedError, match="is not zero"):
        dequantize_snapshot(source, tmp_path / "t", DequantizeOptions("s"))


def test_a_wide_layer_in_pieces_is_the_layer_at_once() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 544))
    zeros, scales = rng.integers(1, 16, (2, 544)), rng.random((2, 544)).astype(np.float16)
    packed = pack(codes, zeros, scales, np.arange(64) // 32, bits=4, version="gptq")
    raw = {
        name: from_bits("F16" if name == "scales" else "I32", array)
        for name, array in packed._asdict().items()
    }
    target = TensorSpec("w", "F32", (544, 64))
    move = DequantizeMove(tuple(raw), target, Packing(4, "gptq"), Tally())

    (made,) = move.rearrange(raw.__getitem__)

    np.testing.assert_array_equal(
        in_memory(made).values(), dequantize(*packed, bits=4, version="gptq").T
    )

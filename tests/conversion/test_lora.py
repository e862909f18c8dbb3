"""Adapters merge to W + scaling · B A in either layout, and change layout without a change."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.diff import diff_checkpoints
from conversion.errors import AdapterError, QuantizedError
from conversion.lora_adapter import read_adapter
from conversion.lora_conversion import convert_lora
from conversion.lora_merging import merge_lora
from conversion.options import ConvertLoraOptions, MergeLoraOptions, ToTransformersOptions
from conversion.steps import to_transformers
from model_store.checkpoint import open_checkpoint
from model_store.errors import ToolkitError
from model_store.manifest import verify_snapshot
from tests.conversion import adapters, published, transformers_models

HIDDEN, MLP = published.HIDDEN, published.MLP
_ORIGINAL = {
    "transformer.h.0.attn.c_attn": (3 * HIDDEN, HIDDEN),
    "transformer.h.1.attn.c_proj": (HIDDEN, HIDDEN),
    "transformer.h.1.mlp.w2": (MLP, HIDDEN),
}


def _merge(base: Path, adapter: Path, target: Path) -> Path:
    return merge_lora(base, target, MergeLoraOptions(str(base), adapter=adapter)).folder


def _state(folder: Path) -> dict[str, torch.Tensor]:
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32}
    with open_checkpoint(folder) as checkpoint:
        return {
            name: torch.frombuffer(bytearray(raw.data), dtype=kinds[raw.dtype]).reshape(raw.shape)
            for name in checkpoint.names()
            for raw in [checkpoint.read(name)]
        }


def _added(tensors: dict[str, torch.Tensor], module: str) -> torch.Tensor:
    key = adapters.PREFIX + module
    return tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_merge_is_the_formula(tmp_path: Path, kind: str, rslora: bool) -> None:
    base = published.make_snapshot(tmp_path / "base")
    tensors = adapters.matrices(_ORIGINAL)
    adapter = adapters.write(tmp_path / "a", tensors, kind=kind, use_rslora=rslora)

    made = _merge(base, adapter, tmp_path / "t")

    before, after = _state(base), _state(made)
    scaling = 6 / math.sqrt(4) if rslora else 6 / 4
    for module in _ORIGINAL:
        name = f"{module}.weight"
        added = (scaling * _added(tensors, module)).float()
        assert torch.equal(after.pop(name), (before.pop(name).float() + added).bfloat16())
    assert all(torch.equal(after[name], before[name]) for name in before)
    (step,) = verify_snapshot(made).lineage
    assert step.facts["merged"] == 3
    assert set(step.facts["adapter"]) == {"adapter_config.json", f"adapter_model.{kind}"}


def test_either_layout_of_the_adapter_merges_into_either_layout_of_the_base(tmp_path: Path) -> None:
    base = published.make_snapshot(tmp_path / "base")
    native = to_transformers(base, tmp_path / "native", ToTransformersOptions("b")).folder
    adapter = adapters.write(tmp_path / "a", adapters.matrices(_ORIGINAL))
    other = convert_lora(ConvertLoraOptions(adapter, tmp_path / "b", "native")).folder

    made = [
        _merge(folder, lora, tmp_path / f"{folder.name}-{lora.name}")
        for folder in (base, native)
        for lora in (adapter, other)
    ]

    for folder in made[1:]:
        assert diff_checkpoints(made[0], folder).identical


def test_an_adapter_of_c_attn_comes_back_byte_by_byte(tmp_path: Path) -> None:
    adapter = adapters.write(tmp_path / "a", adapters.matrices(_ORIGINAL))

    native = convert_lora(ConvertLoraOptions(adapter, tmp_path / "n", "native")).folder
    back = convert_lora(ConvertLoraOptions(native, tmp_path / "o", "original")).folder

    found = read_adapter(native)
    assert set(found.modules) == {
        *[f"model.language_model.layers.0.self_attn.{p}_proj" for p in "qkv"],
        "model.language_model.layers.1.self_attn.o_proj",
        "model.language_model.layers.1.mlp.gate_proj",
    }
    config = json.loads((native / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(found.modules)
    first, last = (adapter / "adapter_model.safetensors", back / "adapter_model.safetensors")
    assert diff_checkpoints(first, last).identical
    assert verify_snapshot(back).lineage[-1].step == "convert_lora"


def test_parts_trained_apart_become_one_of_their_ranks_together(tmp_path: Path) -> None:
    layer = "model.language_model.layers.0.self_attn."
    shapes = {f"{layer}q_proj": (HIDDEN, HIDDEN), f"{layer}v_proj": (HIDDEN, HIDDEN)}
    tensors = adapters.matrices(shapes)
    adapter = adapters.write(tmp_path / "a", tensors, target_modules=["q_proj", "v_proj"])

    made = convert_lora(ConvertLoraOptions(adapter, tmp_path / "o", "original")).folder

    (module,) = read_adapter(made).modules.values()
    assert (module.rank, module.scaling) == (8, 1.5)
    base = published.make_snapshot(tmp_path / "base")
    merged = [_merge(base, lora, tmp_path / f"m-{lora.name}") for lora in (adapter, made)]
    assert diff_checkpoints(*merged).identical
    whole = _state(merged[0])["transformer.h.0.attn.c_attn.weight"]
    before = _state(base)["transformer.h.0.attn.c_attn.weight"]
    assert torch.equal(whole[HIDDEN : 2 * HIDDEN], before[HIDDEN : 2 * HIDDEN])
    assert not torch.equal(whole[:HIDDEN], before[:HIDDEN])


def test_modules_saved_whole_replace_the_base_s(tmp_path: Path) -> None:
    base = published.make_snapshot(tmp_path / "base")
    head = torch.randn(published.VOCABULARY, HIDDEN)
    tensors = adapters.matrices(_ORIGINAL) | {adapters.PREFIX + "lm_head.weight": head}
    adapter = adapters.write(tmp_path / "a", tensors, modules_to_save=["lm_head", "wte"])

    made = _merge(base, adapter, tmp_path / "t")

    assert torch.equal(_state(made)["lm_head.weight"], head.bfloat16())
    assert verify_snapshot(made).lineage[-1].facts["replaced"] == ["lm_head.weight"]


def test_another_family_merges_by_its_own_names(tmp_path: Path) -> None:
    base = transformers_models.make_snapshot(tmp_path / "base", "llama")
    module = "model.layers.1.mlp.down_proj"
    tensors = adapters.matrices({module: (64, 96)}, rank=2)
    adapter = adapters.write(
        tmp_path / "a", tensors, rank_pattern={"down_proj": 2}, alpha_pattern={module: 5}
    )

    made = _merge(base, adapter, tmp_path / "t")

    before, after = _state(base), _state(made)
    expected = before[f"{module}.weight"] + (2.5 * _added(tensors, module)).float()
    assert torch.equal(after[f"{module}.weight"], expected)


def test_a_quantized_base_is_refused_with_the_way_out(tmp_path: Path) -> None:
    base = published.make_snapshot(tmp_path / "base", int4=True)
    adapter = adapters.write(tmp_path / "a", adapters.matrices(_ORIGINAL))

    with pytest.raises(QuantizedError) as caught:
        _merge(base, adapter, tmp_path / "t")

    assert "bf16 base" in caught.value.hint
    assert "quantization.gptq" in caught.value.hint
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"fan_in_fan_out": None}, "fan_in_fan_out"),
        ({"fan_in_fan_out": True}, "has shape"),
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": "6"}, "lora_alpha"),
        ({"rank_pattern": {"c_.*": 4}}, "rank_pattern"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(
    tmp_path: Path, config: dict[str, Any], match: str
) -> None:
    base = published.make_snapshot(tmp_path / "base")
    adapter = adapters.write(tmp_path / "a", adapters.matrices(_ORIGINAL), **config)

    with pytest.raises(AdapterError, match=match):
        _merge(base, adapter, tmp_path / "t")


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("transformer.h.0.mlp.w1.lora_A.weight", "does not start"),
        (adapters.PREFIX + "transformer.h.0.mlp.w1.lora_A.weight", "without its other side"),
        (adapters.PREFIX + "transformer.h.0.mlp.w1.lora_embedding_A", "unknown key"),
        (adapters.PREFIX + "transformer.h.0.mlp.w1.weight", "unknown key"),
    ],
)
def test_unknown_keys_are_refused(tmp_path: Path, key: str, match: str) -> None:
    tensors = adapters.matrices(_ORIGINAL) | {key: torch.zeros(4, HIDDEN)}
    adapter = adapters.write(tmp_path / "a", tensors)

    with pytest.raises(AdapterError, match=match):
        read_adapter(adapter)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = published.make_snapshot(tmp_path / "base")
    tensors = adapters.matrices({"transformer.h.7.mlp.w1": (MLP, HIDDEN)})
    adapter = adapters.write(tmp_path / "a", tensors)

    with pytest.raises(ToolkitError, match=r"h\.7\.mlp\.w1"):
        _merge(base, adapter, tmp_path / "t")

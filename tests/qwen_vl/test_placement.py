"""Folders of 2023 spread over memory and disk, as accelerate spreads any model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from qwen_vl.errors import InputError
from qwen_vl.loading import load_model
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.placement import Placement
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import generate
from tests.qwen_vl.test_int4 import write_int4_folders

IDS = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(9)])[None]
PIXELS = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
MIXED = {"": "cpu", "model.vision_tower": "disk", "model.language_model.layers.1": "disk"}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS, PIXELS).logits
    return out


def on_meta(model: torch.nn.Module) -> set[str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name for name, tensor in tensors if tensor.device.type == "meta"}


@pytest.mark.parametrize("device_map", [MIXED, {"": "disk"}], ids=["some", "all"])
def test_weights_that_wait_on_disk_give_the_same_answers(
    device_map: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    expected = load_model(tiny_folder)

    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder, device_map=device_map, offload_folder=tmp_path / "disk"
    )

    waiting = {name for name in on_meta(model) if name in dict(model.named_parameters())}
    assert waiting == {file.name.removesuffix(".safetensors") for file in _files(tmp_path)}
    assert any("vision_tower" in name for name in waiting)
    assert model.device == torch.device("cpu")
    assert torch.equal(logits(model), logits(expected))
    options = {"input_ids": IDS, "pixel_values": PIXELS, "max_new_tokens": 5}
    options["attention_mask"] = torch.ones_like(IDS)
    assert torch.equal(generate(model, **options), generate(expected, **options))


def _files(place: Path) -> list[Path]:
    return list((place / "disk").iterdir())


def test_integers_wait_on_disk_as_well(tmp_path: Path) -> None:
    int4, _ = write_int4_folders(tmp_path)
    expected = load_model(int4, dtype="float32")

    model = AutoModelForCausalLM.from_pretrained(
        int4, device_map=MIXED, offload_folder=tmp_path / "disk", fp32=True
    )

    assert "model.language_model.layers.1.mlp.up_proj.qweight" in on_meta(model)
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_what_waits_on_disk_is_saved_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(
        tiny_folder, dtype="bfloat16", placement=Placement(MIXED, offload_folder=tmp_path / "disk")
    )
    load_model(tiny_folder, dtype="bfloat16").save_pretrained(tmp_path / "whole")

    model.save_pretrained(tmp_path / "spread")

    spread, whole = (load_file(tmp_path / n / "model.safetensors") for n in ("spread", "whole"))
    assert spread.keys() == whole.keys()
    assert all(torch.equal(spread[name], whole[name]) for name in whole)


def test_a_map_is_inferred_from_the_memory_there_is(tiny_folder: Path, tmp_path: Path) -> None:
    expected = load_model(tiny_folder)
    limit = sum(p.nbytes for p in expected.parameters()) // 2

    model = AutoModelForCausalLM.from_pretrained(
        tiny_folder,
        device_map="sequential",
        max_memory={"cpu": limit},
        offload_folder=tmp_path / "disk",
    )

    kept = sum(p.nbytes for p in model.parameters() if p.device.type == "cpu")
    assert 0 < kept <= limit
    assert torch.equal(logits(model), logits(expected))


def test_the_map_is_the_one_that_a_native_folder_gets(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    limit = {"cpu": sum(p.nbytes for p in tiny.parameters()) // 2}

    places = Placement("sequential", limit, Path("unused")).resolve(tiny, torch.float32)

    assert dict(places.devices) == infer_auto_device_map(
        tiny, limit, tiny._no_split_modules, dtype=torch.float32
    )
    assert set(places.devices.values()) == {"cpu", "disk"}


@pytest.mark.parametrize(
    ("device_map", "says"),
    [
        ({"model": "cpu"}, "leaves lm_head.weight out"),
        ({"": "cpu", "model.head": "cpu"}, "'model.head'"),
        ({"": "nowhere"}, "'nowhere' is no device"),
        ("nowhere", "'nowhere' is no device"),
        ({"": "disk"}, "no folder for them"),
    ],
)
def test_maps_that_cannot_be_followed_are_refused(
    device_map: Any, says: str, tiny_folder: Path
) -> None:
    with pytest.raises(InputError, match=says):
        AutoModelForCausalLM.from_pretrained(tiny_folder, device_map=device_map)


def test_a_map_may_spread_over_many_places_on_meta(tiny_folder: Path, tmp_path: Path) -> None:
    """Devices that are not here are still followed: every weight lands where its module does."""
    tiny = load_model(tiny_folder)
    mapped = {"model.vision_tower": "meta", "model.multi_modal_projector": "cpu"}
    mapped |= {"model.language_model": "disk", "lm_head": "meta"}

    places = Placement(mapped, offload_folder=tmp_path / "disk").resolve(tiny, torch.float32)

    landed = {
        name: places.put(name, tensor).device.type for name, tensor in tiny.named_parameters()
    }
    assert {landed[n] for n in landed if ".multi_modal_projector." in n} == {"cpu"}
    assert {landed[n] for n in landed if ".multi_modal_projector." not in n} == {"meta"}
    written = {file.name.removesuffix(".safetensors") for file in _files(tmp_path)}
    assert written == {n for n in landed if n.startswith("model.language_model.")}

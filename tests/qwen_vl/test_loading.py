import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import qwen_vl.auto  # noqa: F401  # registers with the Auto classes
from model_store.errors import UnmappedTensorError, UnsafeCheckpointError
from qwen_vl.errors import (
    ConfigError,
    RankFileError,
    UnknownCompatError,
    UnknownDtypeError,
    UnsupportedArchitectureError,
    WeightNamesError,
)
from qwen_vl.loading import load_model, load_processor, load_tokenizer
from qwen_vl.modeling import QwenVLForConditionalGeneration
from tests.qwen_vl import tiny_model
from tests.qwen_vl.model_goldens import features


def same(a: QwenVLForConditionalGeneration, b: QwenVLForConditionalGeneration) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_every_parameter_is_filled_and_nothing_stays_on_meta(
    tiny: QwenVLForConditionalGeneration,
) -> None:
    held = [*tiny.parameters(), *tiny.buffers()]

    assert not tiny.training
    assert tiny.compat == "default"
    assert all(tensor.device.type == "cpu" for tensor in held)
    assert not tiny.model.multi_modal_projector.position_embedding.requires_grad
    vision = tiny_model.tensors()["transformer.visual.transformer.resblocks.0.attn.in_proj.weight"]
    heads = vision.reshape(2, 3, -1, tiny_model.WIDTH)
    key = tiny.model.vision_tower.layers[0].self_attn.k_proj.weight
    assert torch.equal(key, heads[:, 1].reshape(-1, tiny_model.WIDTH))


def test_torch_files_give_the_same_model(
    tiny: QwenVLForConditionalGeneration, tmp_path: Path
) -> None:
    folder = tiny_model.write_small_folder(tmp_path / "bin")
    names = sorted(tiny_model.tensors())
    shards = {"pytorch_model-1.bin": names[:20], "pytorch_model-2.bin": names[20:]}
    for file, kept in shards.items():
        torch.save({name: tiny_model.tensors()[name] for name in kept}, folder / file)
    index = {name: file for file, kept in shards.items() for name in kept}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))

    assert same(load_model(folder), tiny)


def test_a_tower_as_wide_as_its_output_has_no_kv_projection(tmp_path: Path) -> None:
    width = tiny_model.HIDDEN
    folder = tiny_model.write_small_folder(tmp_path / "wide", visual={"width": width})
    save_file(tiny_model.tensors(width=width), folder / "model.safetensors")

    model = load_model(folder)

    assert "model.multi_modal_projector.kv_proj.weight" not in model.state_dict()
    assert features(model, torch.zeros(1, 3, 28, 28)).shape[0] == 1


@pytest.mark.parametrize(
    ("asked", "got"),
    [(None, torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
)
def test_dtype_is_the_configs_unless_asked(asked: Any, got: torch.dtype, tiny_folder: Path) -> None:
    model = load_model(tiny_folder, dtype=asked)

    assert model.dtype == model.config.dtype == got
    assert {parameter.dtype for parameter in model.parameters()} == {got}
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(3)])[None]
    assert model(ids, torch.zeros(1, 3, 28, 28)).logits.dtype == got


def test_rotation_frequencies_survive_a_cast(tiny: QwenVLForConditionalGeneration) -> None:
    rotary = tiny.model.language_model.rotary_emb
    before = rotary.inv_freq.clone()

    tiny.half()

    assert torch.equal(rotary.inv_freq, before)


def test_compat_is_readable_and_checked(tiny_folder: Path) -> None:
    assert load_model(tiny_folder, compat="2023").compat == "2023"
    with pytest.raises(UnknownCompatError, match="2024"):
        load_model(tiny_folder, compat="2024")


def test_saved_and_loaded_again_nothing_changes(
    tiny: QwenVLForConditionalGeneration, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "native")

    ours = load_model(tmp_path / "native")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "native", output_loading_info=True
    )
    theirs, report = loaded
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.bfloat16)

    assert not any(report.values())
    assert same(ours, tiny)
    assert same(theirs, tiny)
    assert causal.dtype == torch.bfloat16
    rotary = causal.model.language_model.rotary_emb.inv_freq
    assert torch.equal(rotary, tiny.model.language_model.rotary_emb.inv_freq)
    ids = tiny_model.text_ids(40)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, tiny(ids).logits)
        assert torch.equal(ours(ids).logits, tiny(ids).logits)
    assert AutoConfig.from_pretrained(tmp_path / "native").original_config == tiny_model.CONFIG


def test_a_fresh_model_is_initialised_and_runs(tiny: QwenVLForConditionalGeneration) -> None:
    fresh = QwenVLForConditionalGeneration(tiny.config).eval()

    ids = torch.cat([tiny_model.image_ids(), tiny_model.text_ids(3)])[None]
    logits = fresh(ids, torch.zeros(1, 3, 28, 28)).logits

    assert torch.isfinite(logits).all()
    table = fresh.model.multi_modal_projector.position_embedding
    torch.testing.assert_close(table, tiny.model.multi_modal_projector.position_embedding)


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ("missing", WeightNamesError, "lacks lm_head.weight"),
        ("unknown", UnmappedTensorError, "transformer.h.0.extra.weight"),
        ("surplus", WeightNamesError, "layers.7.input_layernorm.weight"),
        ("shape", WeightNamesError, r"norm.weight is of shape \(63,\)"),
        ("integers", WeightNamesError, "U16"),
    ],
)
def test_weights_that_are_not_the_models_are_named(
    broken: str, error: type[Exception], message: str, tiny_folder: Path
) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    match broken:
        case "missing":
            del weights["lm_head.weight"]
        case "unknown":
            weights["transformer.h.0.extra.weight"] = torch.zeros(1)
        case "surplus":
            weights["transformer.h.7.ln_1.weight"] = torch.zeros(tiny_model.HIDDEN)
        case "shape":
            weights["transformer.ln_f.weight"] = torch.zeros(63)
        case "integers":
            weights["transformer.ln_f.weight"] = torch.zeros(tiny_model.HIDDEN, dtype=torch.uint16)
    save_file(weights, tiny_folder / "model.safetensors")

    with pytest.raises(error, match=message):
        load_model(tiny_folder)


def test_another_model_is_refused_before_its_weights_are_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")

    with pytest.raises(UnsupportedArchitectureError, match="text-only"):
        load_model(tmp_path)


def test_a_pickle_that_would_run_code_is_not_run(tiny_folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tiny_folder / "ran",))

    (tiny_folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap()}, tiny_folder / "pytorch_model.bin")

    with pytest.raises(UnsafeCheckpointError):
        load_model(tiny_folder)

    assert not (tiny_folder / "ran").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "qwen", "model_type": "x"}'])
def test_a_damaged_config_is_one_line(text: str, tiny_folder: Path) -> None:
    (tiny_folder / "config.json").write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_model(tiny_folder)

    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_missing_config_and_an_odd_dtype_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(UnknownDtypeError, match="int8"):
        load_model(tiny_folder, dtype="int8")
    (tiny_folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model(tiny_folder)


def test_a_folder_without_rank_file_loads_the_model_and_no_tokenizer(tiny_folder: Path) -> None:
    (tiny_folder / "qwen.tiktoken").unlink()

    assert load_model(tiny_folder).config.image_start_token_id == tiny_model.IMAGE_START
    with pytest.raises(RankFileError, match=r"no \*\.tiktoken") as caught:
        load_tokenizer(tiny_folder)
    assert caught.value.hint


def test_two_rank_files_are_ambiguous_unless_one_has_the_name(tiny_folder: Path) -> None:
    shutil.copyfile(tiny_folder / "qwen.tiktoken", tiny_folder / "other.tiktoken")
    assert load_tokenizer(tiny_folder).vocab_file.endswith("qwen.tiktoken")

    (tiny_folder / "qwen.tiktoken").rename(tiny_folder / "third.tiktoken")

    with pytest.raises(RankFileError, match=r"other\.tiktoken, third\.tiktoken"):
        load_tokenizer(tiny_folder)


def test_the_tokenizer_makes_blocks_of_the_models_length(tiny_folder: Path) -> None:
    ids = load_tokenizer(tiny_folder, style="r1").encode("<img>a</img>")

    assert len(ids) == tiny_model.QUERIES + 2
    assert load_processor(tiny_folder).image_processor.size.height == 28


def test_generation_settings_are_read_from_the_folder(tiny_folder: Path) -> None:
    settings = {"chat_format": "chatml", "eos_token_id": 5, "top_p": 0.3, "do_sample": True}
    (tiny_folder / "generation_config.json").write_text(json.dumps(settings))

    config: Any = load_model(tiny_folder).generation_config

    assert (config.eos_token_id, config.top_p, config.chat_format) == (5, 0.3, "chatml")

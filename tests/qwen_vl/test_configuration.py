import copy
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_vl.config_map import is_original_layout, to_native_config, to_original_config
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.errors import ConfigError, UnsupportedArchitectureError
from tests.qwen_vl import tiny_model
from tests.qwen_vl.text_goldens import ASSETS, small_ranks

PUBLISHED_RANKS = 151643


def original() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ASSETS / "pub_b" / "config.json").read_text())
    return found


def test_native_values_come_from_the_2023_keys() -> None:
    native = to_native_config(original(), n_ranks=PUBLISHED_RANKS)

    text, vision = native["text_config"], native["vision_config"]
    assert text["intermediate_size"] == 512  # half of the key
    assert text["rope_parameters"]["rope_theta"] == 10000
    assert vision["intermediate_size"] == int(96 * 4.9231)
    assert (vision["num_attention_heads"], vision["layer_norm_eps"]) == (3, 1e-6)
    assert (native["n_queries"], native["output_dim"]) == (256, 256)
    assert native["projector_num_attention_heads"] == 2
    assert native["image_start_token_id"] == 151857
    assert native["image_token_id"] == 151859
    assert native["dtype"] == "float32"


def test_the_way_back_gives_the_same_dict() -> None:
    before = original()

    native = to_native_config(before, n_ranks=PUBLISHED_RANKS)

    assert to_original_config(json.loads(json.dumps(native))) == before == original()


def test_the_config_object_gives_back_the_original_too(tmp_path: Path) -> None:
    config = QwenVLConfig(**to_native_config(original(), n_ranks=PUBLISHED_RANKS))

    config.save_pretrained(tmp_path)
    again = QwenVLConfig.from_pretrained(tmp_path)

    assert again.original_config == original()
    assert to_original_config(json.loads((tmp_path / "config.json").read_text())) == original()
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert again.vision_config.to_dict() == config.vision_config.to_dict()


def test_another_dtype_or_quantization_reaches_the_original_config() -> None:
    native = to_native_config(original(), n_ranks=PUBLISHED_RANKS)
    native["dtype"], native["quantization_config"] = "float16", {"bits": 4}

    back = to_original_config(native)

    assert (back["torch_dtype"], back["fp16"], back["fp32"]) == ("float16", True, False)
    assert back["quantization_config"] == {"bits": 4}


def test_a_projector_of_128_channels_has_one_head() -> None:
    native = to_native_config(tiny_model.CONFIG, n_ranks=len(small_ranks()))

    assert native["projector_num_attention_heads"] == 1
    assert native["n_queries"] == tiny_model.QUERIES


def test_flags_outside_the_published_models_are_kept() -> None:
    changed = original() | {"no_bias": False, "rotary_pct": 0.5, "use_dynamic_ntk": False}

    config = QwenVLConfig(**to_native_config(changed, n_ranks=PUBLISHED_RANKS)).text_config

    assert (config.attention_out_bias, config.mlp_bias) == (True, True)
    assert config.rotary_dim == config.head_dim // 2
    assert not config.use_dynamic_ntk


def test_layouts_are_told_apart() -> None:
    assert is_original_layout(original())
    assert not is_original_layout(to_native_config(original(), n_ranks=PUBLISHED_RANKS))


@pytest.mark.parametrize(
    "config", [{"model_type": "qwen"}, {"model_type": "llama", "visual": {}}, {}]
)
def test_other_models_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError) as caught:
        is_original_layout(config)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hidden_size",), 255),
        (("intermediate_size",), 1023),
        (("num_hidden_layers",), "2"),
        (("use_logn_attn",), "auto"),
        (("layer_norm_epsilon",), None),
        (("visual", "output_dim"), 128),
        (("visual", "heads"), 5),
        (("visual", "width"), -96),
        (("visual", "image_start_id"), 7),
    ],
)
def test_configs_that_contradict_themselves_are_refused(path: tuple[str, ...], value: Any) -> None:
    config = copy.deepcopy(original())
    place = config if len(path) == 1 else config[path[0]]
    place[path[-1]] = value

    with pytest.raises(ConfigError):
        to_native_config(config, n_ranks=PUBLISHED_RANKS)


def test_a_native_config_without_its_original_cannot_go_back() -> None:
    with pytest.raises(ConfigError, match="original_config"):
        to_original_config({"model_type": "qwen_vl"})

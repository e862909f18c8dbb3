"""Decoders that nobody wrote a table for, from a snapshot on disk to one that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from model_store.checkpoint import open_checkpoint
from model_store.errors import ToolkitError, UsageError
from model_store.gptq_format import dequantize
from model_store.manifest import Manifest, read_manifest, scan, write_manifest
from model_store.records import read_records
from quantization.blocks import decoder_layers, finish, reach_layers, run_layer
from quantization.errors import CalibrationError, UnsupportedModelError, UnusableTensorError
from quantization.options import GptqConfig
from quantization.step import quantize_snapshot
from tests.quantization.decoders import decoder, write_decoder, write_ids

FAMILIES = ("qwen2", "llama", "qwen3", "mistral")


def _config(folder: Path, **changed: Any) -> GptqConfig:
    texts = write_ids(folder / "ids.jsonl")
    return GptqConfig(**{"group_size": 32, "calibration": str(texts), **changed})


@pytest.mark.parametrize("kind", [*FAMILIES, "gemma3_text", "phi3"])
def test_layers_run_apart_from_their_model_do_the_same(kind: str) -> None:
    model = decoder(kind)
    layers = decoder_layers(model)
    given = {"input_ids": torch.arange(3, 33)[None], "use_cache": False}

    with torch.no_grad():
        expected = model(**given).logits
        hidden, calls = reach_layers(model, layers, given)
        for layer, call in zip(layers.values(), calls, strict=True):
            hidden = run_layer(layer, hidden, call)
        found = finish(model, layers, given, hidden).logits

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_stock_decoder_is_quantized_and_runs(kind: str, tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "source", kind)
    target = tmp_path / "out"

    quantize_snapshot(source, target, _config(tmp_path))

    told = json.loads((target / "config.json").read_text())
    assert told["model_type"] == kind
    assert told["quantization_config"]["desc_act"] is False
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
        for name, weight in _weights(target, 4).items():
            model.get_submodule(name).weight.copy_(weight)
        after = model(ids).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.4
    (record,) = read_records(target, candidate=read_manifest(target).content_digest)
    assert record.verdict == "pass"


def _weights(folder: Path, bits: int) -> dict[str, torch.Tensor]:
    found = {}
    with open_checkpoint(folder) as held:
        for key in [key for key in held.names() if key.endswith(".qweight")]:
            name = key.removesuffix(".qweight")
            parts: list[Any] = [
                held.read(f"{name}.{part}").values()
                for part in ("qweight", "qzeros", "scales", "g_idx")
            ]
            found[name] = torch.from_numpy(dequantize(*parts, bits=bits, version="gptq").T.copy())
    return found


def test_some_linears_can_be_left_out_added_or_wider(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "source")
    config = _config(
        tmp_path,
        include=("lm_head",),
        exclude=("layers.0.*", "*.o_proj"),
        modules=("*.down_proj:bits=8,group_size=64", "up_proj:bits=3"),
    )

    quantize_snapshot(source, tmp_path / "out", config)

    told = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    with open_checkpoint(tmp_path / "out") as held:
        packed = {n.removesuffix(".qweight") for n in held.names() if n.endswith(".qweight")}
        shapes = {name: held.info(f"{name}.qweight").shape for name in packed}
    layer = "model.layers.1"
    attention = {f"{layer}.self_attn.{part}_proj" for part in "qkv"}
    mlp = {f"{layer}.mlp.{part}_proj" for part in ("gate", "up", "down")}
    assert packed == attention | mlp | {"lm_head"}
    assert shapes[f"{layer}.mlp.down_proj"] == (32, 64)  # 128 codes of 8 bits
    assert shapes[f"{layer}.mlp.up_proj"] == (6, 128)  # 64 codes of 3 bits
    assert told["lm_head"] is True
    assert {"bits": 8, "group_size": 64} in told["dynamic"].values()


def test_the_other_formats_and_settings_are_proved_on_write(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "source")
    ways: tuple[dict[str, Any], ...] = (
        {"format": "gptq_v2"},
        {"act_order": "dynamic"},
        {"bits": 2, "group_size": 16},
        {"asymmetric": True, "group_size": -1},
        {"signed_scales": True, "preset": "best"},
    )
    for number, changed in enumerate(ways):
        target = tmp_path / str(number)

        quantize_snapshot(source, target, _config(tmp_path, **changed))

        told = json.loads((target / "quantize_config.json").read_text())
        assert told["desc_act"] == (changed.get("act_order") == "dynamic")
        assert told["checkpoint_format"] == changed.get("format", "gptq")


def _bad() -> list[tuple[str, type[ToolkitError], str, dict[str, Any]]]:
    return [
        ("plain", UsageError, "include 'vision'", {"include": ("vision",)}),
        ("plain", UsageError, "exclude '.*nothing'", {"exclude": ("*nothing",)}),
        ("tied", UnsupportedModelError, "shares its weight", {"include": ("lm_head",)}),
        ("plain", CalibrationError, "at most rank", {"samples": 1}),
        ("nan weight", UnusableTensorError, "weight of model.layers.1.mlp.up_proj", {}),
        ("nan input", UnusableTensorError, "inputs of model.layers.0.self_attn.q_proj", {}),
        ("plain", UsageError, "layout original", {"layout": "original"}),
    ]


@pytest.mark.parametrize(("kind", "error", "message", "changed"), _bad())
def test_bad_input_is_one_line_and_nothing_half_written(
    kind: str, error: type[ToolkitError], message: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    source = write_decoder(tmp_path / "source", tie_word_embeddings=kind == "tied")
    if kind.startswith("nan"):
        part = "model.layers.1.mlp.up_proj" if kind == "nan weight" else "model.embed_tokens"
        _poison(source, part)

    with pytest.raises(error, match=message) as caught:
        quantize_snapshot(source, tmp_path / "out" / "q", _config(tmp_path, **changed))

    assert "\n" not in str(caught.value)
    assert caught.value.hint or error is UsageError
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def _poison(folder: Path, part: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    module = model.get_submodule(part)
    assert isinstance(module, nn.Linear | nn.Embedding)
    with torch.no_grad():
        module.weight[5:, 1] = float("nan")
    model.save_pretrained(folder)
    write_manifest(folder, Manifest(files=scan(folder)))

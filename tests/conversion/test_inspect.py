"""`inspect` counts what a checkpoint holds, in whatever files it comes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion import inspect
from conversion.inspecting import inspect_checkpoint
from tests.conversion import published, transformers_models


def test_parameters_are_counted_by_part(tmp_path: Path) -> None:
    folder = transformers_models.make_snapshot(tmp_path / "m")

    found = inspect_checkpoint(folder)

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    parts = {part.name: part.parameters for part in found.parts()}
    layers = sum(p.numel() for p in model.model.layers.parameters())
    assert parts["model.layers"] == layers
    assert parts["lm_head"] == 160 * 64
    assert found.layout == "other"


def test_packed_codes_count_as_the_parameters_that_they_are(tmp_path: Path) -> None:
    folder = published.make_snapshot(tmp_path / "m", int4=True)

    found = inspect_checkpoint(folder)

    counts = {entry.name: entry.parameters for entry in found.entries}
    assert counts["transformer.h.0.attn.c_proj.qweight"] == published.HIDDEN**2
    assert counts["transformer.h.0.attn.c_proj.scales"] == 0


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_file_and_odd_values(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inf, nan = float("inf"), float("nan")
    state = {
        "half": torch.tensor([1.0, inf, nan, -inf]).half(),
        "brain": torch.tensor([nan, 1.0]).bfloat16(),
        "double": torch.tensor([inf], dtype=torch.float64),
        "whole": torch.tensor([7]),
    }
    path = tmp_path / f"one.{suffix}"
    if suffix == "bin":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)

    status = inspect.main([str(path), "--json", "--values", "--quiet"])

    out = json.loads(capsys.readouterr().out)
    assert status == 0
    odd = {t["name"]: (t["values"]["nan"], t["values"]["infinite"]) for t in out["tensors"]}
    assert odd == {"half": (1, 2), "brain": (1, 0), "double": (0, 1), "whole": (0, 0)}
    assert out["bytes_by_dtype"] == {"F16": 8, "F64": 8, "I64": 8, "BF16": 4}


def test_layers_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = transformers_models.make_snapshot(tmp_path / "m")

    assert inspect.main([str(folder)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "model.layers.{0…1}.mlp.gate_proj.weight  F32 [96, 64]" in lines

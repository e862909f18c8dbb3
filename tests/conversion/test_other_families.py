"""Checkpoints that the tool has never seen: a small Qwen2 and a small Llama, by transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conversion import cast, diff, inspect, reshard, to_safetensors, to_transformers
from model_store.manifest import verify_snapshot
from tests.conversion import transformers_models


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_another_family_needs_no_special_code(
    tmp_path: Path, family: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    source = transformers_models.make_snapshot(tmp_path / "s", family, kind=kind)
    safe, small, brain = (tmp_path / name for name in ("safe", "small", "brain"))

    assert to_safetensors.main([f"{source}", "--into", f"{safe}", "--quiet"]) == 0
    argv = ["--max-shard-size", "40KB", "--quiet"]
    assert reshard.main([f"{safe}", "--into", f"{small}", *argv]) == 0
    assert cast.main([f"{small}", "--into", f"{brain}", "--to", "bfloat16", *argv]) == 0

    assert diff.main([f"{source}", f"{small}", "--quiet"]) == 0
    assert diff.main([f"{source}", f"{brain}", "--quiet"]) == 1
    assert inspect.main([f"{brain}", "--values"]) == 0
    assert "no NaN and no infinity" in capsys.readouterr().out
    assert len(list(small.glob("*.safetensors"))) > 5
    expected = AutoModelForCausalLM.from_pretrained(source).state_dict()
    for folder, dtype in ((small, torch.float32), (brain, torch.bfloat16)):
        verify_snapshot(folder)
        found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name].to(dtype)) for name in found)


def test_to_transformers_says_that_it_is_for_qwen_vl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = transformers_models.make_snapshot(tmp_path / "s", "llama")

    assert to_transformers.main([f"{source}", "--into", f"{tmp_path}/t"]) == 4

    err = capsys.readouterr().err
    assert "error: config.json has model_type 'llama': this is not a Qwen-VL" in err
    assert "to_safetensors" in err

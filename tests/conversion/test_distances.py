"""Distances are torch's, across dtypes, and exact for integers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion import diff
from conversion.casting import cast_snapshot
from conversion.comparing import Report, diff_checkpoints
from conversion.options import CastOptions, ToSafetensorsOptions
from conversion.steps import to_safetensors
from tests.conversion import published, transformers_models


def _diff(tmp_path: Path, ours: torch.Tensor, theirs: torch.Tensor) -> Report:
    save_file({"x": ours}, tmp_path / "a.safetensors")
    save_file({"x": theirs}, tmp_path / "b.safetensors")
    return diff_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_is_measured(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = torch.randn(1000)
    theirs = ours.to(dtype)

    report = _diff(tmp_path, ours, theirs)

    (found,) = report.mismatched
    gaps = (ours.double() - theirs.double()).abs()
    assert found.differing == int((gaps > 0).sum())
    assert found.max_abs == float(gaps.max())
    assert found.mean_abs == pytest.approx(float(gaps.mean()), rel=1e-12)
    assert not report.identical
    assert report.compared == 0


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_have_torch_s_values(tmp_path: Path, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every[torch.isfinite(every.float())]

    report = _diff(tmp_path, finite, finite.float() + 1)
    same = _diff(tmp_path, every, every.float())

    assert report.mismatched[0].max_abs == 1.0
    assert same.mismatched[0].differing == 0
    assert "the same numbers" in same.text()


def test_integers_are_compared_exactly(tmp_path: Path) -> None:
    low, high = -(2**63), 2**63 - 1

    far = _diff(tmp_path, torch.tensor([low, 5]), torch.tensor([high, 5]))
    near = _diff(tmp_path, torch.tensor([2**60, 5, 5, 5]), torch.tensor([2**60 + 1, 5, 5, 5]))

    assert far.unequal[0].max_abs == float(2**64)
    assert (near.unequal[0].max_abs, near.unequal[0].mean_abs) == (1.0, 0.25)
    assert near.unequal[0].differing == 1


def test_nan_and_infinity_leave_no_distance(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    ours, theirs = torch.tensor([nan, inf, 1.0]), torch.tensor([nan, inf, 1.0]).bfloat16()

    same = _diff(tmp_path, ours, theirs)
    other = _diff(tmp_path, ours, torch.tensor([1.0, 1.0, 1.0]).bfloat16())

    assert same.mismatched[0].differing == 0
    assert (other.mismatched[0].differing, other.mismatched[0].max_abs) == (2, None)


def test_hints_say_what_may_be_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = transformers_models.make_snapshot(tmp_path / "plain", tied=True, kind="bin")
    options = ToSafetensorsOptions("s", tied="keep-one")
    tied = to_safetensors(plain, tmp_path / "tied", options).folder
    brain = cast_snapshot(plain, tmp_path / "brain", CastOptions("s", to="bfloat16")).folder
    wide = cast_snapshot(brain, tmp_path / "wide", CastOptions("s", to="float32")).folder
    int4 = published.make_snapshot(tmp_path / "int4", int4=True)
    bf16 = published.make_snapshot(tmp_path / "bf16")
    save_file({"model.a": torch.ones(1)}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors")

    said = []
    for one, two in (
        (plain, tied),
        (plain, brain),
        (brain, wide),
        (bf16, int4),
        (tmp_path / "a.safetensors", tmp_path / "b.safetensors"),
    ):
        assert diff.main([str(one), str(two), "--json", "--quiet"]) == 1
        said.append(" ".join(json.loads(capsys.readouterr().out)["hints"]))

    for words, text in zip(
        ("tied", "was cast", "lost nothing", "quantized", "'model.'"), said, strict=True
    ):
        assert words in text

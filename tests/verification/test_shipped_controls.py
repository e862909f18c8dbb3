"""Controls on the trained checkpoint under the shipped profile: they must come out as said.

The reference is asked once; every candidate of a claim takes its answers from the journal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import qwen_vl.vision
from conversion import to_transformers
from quantization import gptq
from tests.verification.trained import Weights, damaged, need_trained
from verification import compare

pytestmark = pytest.mark.slow
# for a verdict on a quantized claim the profile takes no less than 300, with 3 000 answer tokens
_SAMPLES = "360"
_LAYERS = "model.language_model.layers."


@dataclass(frozen=True)
class _Made:
    """Snapshots that the controls damage, and the journal that they share."""

    original: Path
    native: Path
    int4: Path
    rtn: Path
    work: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Made:
    original = need_trained()
    folder = tmp_path_factory.mktemp("trained")
    native, int4, rtn = folder / "native", folder / "int4", folder / "rtn"
    assert to_transformers.main([str(original), "--into", str(native), "--quiet"]) == 0
    assert gptq.main([str(native), "--into", str(int4), "--quiet"]) == 0
    assert gptq.main([str(native), "--method", "rtn", "--into", str(rtn), "--quiet"]) == 0
    return _Made(original, native, int4, rtn, folder / "work")


def _gate(
    made: _Made, tmp_path: Path, reference: Path, candidate: Path, claim: str
) -> tuple[int, dict[str, Any]]:
    report = tmp_path / "report"
    argv = [str(reference), str(candidate), "--claim", claim, "--profile", "default", "--quiet"]
    argv += ["--report", str(report), "--work", str(made.work)]
    if claim == "quantized":
        argv += ["--samples", _SAMPLES]
    status = compare.main(argv)
    found: dict[str, Any] = json.loads((report / "parity.json").read_text(encoding="utf-8"))
    return status, found


def _failed(report: dict[str, Any]) -> set[str]:
    return {m["name"] for m in report["measurements"] if m["verdict"] == "fail"}


def _row(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in report["measurements"] if m["name"] == name)
    return found


# ---- what must come out well


def test_the_right_conversion_passes_without_a_bit_of_difference(
    made: _Made, tmp_path: Path
) -> None:
    status, report = _gate(made, tmp_path, made.original, made.native, "converted")

    assert (status, report["verdict"]) == (0, "pass")
    assert _row(report, "logits_max_delta")["value"] == 0
    assert _row(report, "logits_bit_equal")["value"] == 1
    assert _row(report, "witness_image_error")["value"] < 3e-6


def test_the_reference_against_itself_is_exactly_nothing(made: _Made, tmp_path: Path) -> None:
    status, report = _gate(made, tmp_path, made.native, made.native, "converted")

    assert (status, report["verdict"]) == (0, "pass")
    nothing = ("logits_max_delta", "kl_mean", "kl_p99", "modules_at_fault")
    assert [_row(report, name)["value"] for name in nothing] == [0] * 4


def test_one_at_a_time_is_the_noise_floor_and_gptq_beats_rounding(
    made: _Made, tmp_path: Path
) -> None:
    _, careful = _gate(made, tmp_path / "gptq", made.native, made.int4, "quantized")
    _, plain = _gate(made, tmp_path / "rtn", made.native, made.rtn, "quantized")

    assert _row(careful, "noise_floor")["value"] < _row(careful, "kl_mean")["value"] / 1e3
    ratio = _row(careful, "kl_rtn_ratio")
    assert ratio["interval"][1] < 1  # better than rounding, and sure of it
    assert _row(plain, "kl_rtn_ratio")["value"] == pytest.approx(1, abs=1e-3)
    assert _row(plain, "kl_mean")["value"] > _row(careful, "kl_mean")["value"]
    assert _failed(careful) <= _failed(plain)


# ---- conversions that must fail


def _swap(weights: Weights, one: str, two: str) -> None:
    for name in [name for name in weights if one in name]:
        other = name.replace(one, two)
        weights[name], weights[other] = weights[other].clone(), weights[name].clone()


def test_two_layers_exchanged_fail(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(
        made.native, tmp_path / "c", lambda w: _swap(w, f"{_LAYERS}1.", f"{_LAYERS}2.")
    )

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "logits_max_delta", "witness_max_delta"} <= _failed(report)
    assert report["culprit"].startswith(f"{_LAYERS}1 ")


def test_w1_and_w2_exchanged_fail(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(made.native, tmp_path / "c", lambda w: _swap(w, "gate_proj", "up_proj"))

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert {"logits_max_delta", "kl_mean", "witness_max_delta"} <= _failed(report)
    assert report["culprit"].startswith(f"{_LAYERS}0 ")


def test_q_k_v_out_of_order_fail(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(made.native, tmp_path / "c", lambda w: _swap(w, "q_proj", "k_proj"))

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "logits_max_delta"} <= _failed(report)


def test_c_proj_replaced_by_noise_fails(made: _Made, tmp_path: Path) -> None:
    def noise(weights: Weights) -> None:
        dice = torch.Generator().manual_seed(0)
        for name in [name for name in weights if name.endswith("self_attn.o_proj.weight")]:
            drawn = torch.randn(weights[name].shape, generator=dice) * 0.02
            weights[name] = drawn.to(weights[name].dtype)

    candidate = damaged(made.native, tmp_path / "c", noise)

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "logits_max_delta", "kl_mean"} <= _failed(report)
    assert "self_attn.o_proj.weight" in report["culprit"]


def test_the_tokenizer_of_the_other_helper_revision_fails(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(
        made.native, tmp_path / "c", tokenizer_config=lambda t: t.update(style="r1")
    )

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert "token_ids_differing" in _failed(report)


def test_a_vision_tower_off_by_one_epsilon_fails(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(
        made.native, tmp_path / "c", config=lambda t: t["vision_config"].update(layer_norm_eps=1e-5)
    )

    status, report = _gate(made, tmp_path, made.original, candidate, "converted")

    assert status == 1
    assert "settings_differing" in _failed(report)


def test_positions_that_are_not_interpolated_fail(
    made: _Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(table: torch.Tensor, count: int) -> torch.Tensor:
        return table[:count]

    monkeypatch.setattr(qwen_vl.vision, "stretch_positions", cut)
    apart = _Made(made.original, made.native, made.int4, made.rtn, tmp_path / "work")

    # wrong in our own code, so on both sides: only the independent forward can see it
    status, report = _gate(apart, tmp_path, made.original, made.native, "converted")

    assert status == 1
    assert {"witness_max_delta", "witness_image_error"} <= _failed(report)


# ---- quantizations that must fail


def test_two_exchanged_layers_of_an_int4_fail(made: _Made, tmp_path: Path) -> None:
    candidate = damaged(
        made.int4, tmp_path / "c", lambda w: _swap(w, f"{_LAYERS}1.", f"{_LAYERS}2.")
    )

    status, report = _gate(made, tmp_path, made.native, candidate, "quantized")

    assert status == 1
    # the answers' own words hide it: two middle layers of so small a model do much the same
    assert {"weight_error_max", "kept_tensors_differing", "box_agreement"} <= _failed(report)


def test_one_scale_tensor_that_is_a_tenth_too_large_fails(made: _Made, tmp_path: Path) -> None:
    name = f"{_LAYERS}2.mlp.up_proj.scales"

    candidate = damaged(made.int4, tmp_path / "c", lambda w: w.update({name: w[name] * 1.1}))
    status, report = _gate(made, tmp_path, made.native, candidate, "quantized")

    assert status == 1
    assert "weight_scale_deviation_max" in _failed(report)
    assert "layers.2.mlp.up_proj" in _row(report, "weight_scale_deviation_max")["note"]


def test_a_wrong_g_idx_fails(made: _Made, tmp_path: Path) -> None:
    name = f"{_LAYERS}1.mlp.down_proj.g_idx"

    candidate = damaged(
        made.int4, tmp_path / "c", lambda w: w.update({name: w[name].flip(0).contiguous()})
    )
    status, report = _gate(made, tmp_path, made.native, candidate, "quantized")

    assert status == 1
    assert "weight_error_max" in _failed(report)
    assert "layers.1.mlp.down_proj" in _row(report, "weight_error_max")["note"]


def test_the_reference_passed_off_as_int4_fails(made: _Made, tmp_path: Path) -> None:
    settings = json.loads((made.int4 / "config.json").read_text(encoding="utf-8"))
    form = settings["quantization_config"]
    candidate = damaged(
        made.native, tmp_path / "c", config=lambda t: t.update(quantization_config=form)
    )

    status, report = _gate(made, tmp_path, made.native, candidate, "quantized")

    assert status == 1
    assert {"quantized_linears", "kl_max"} <= _failed(report)

"""The gate's own test: a good pair passes, and every known kind of damage fails, on one profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qwen_vl.vision
import qwen_vl.weight_map
from model_store.manifest import Manifest, scan, write_manifest
from model_store.weight_rules import Rule, WeightMap
from qwen_vl.weight_map import RULES
from tests.verification import snapshots
from tests.verification.snapshots import Weights
from verification import compare

_SAMPLES = "16"  # the least that the demo profile takes
_W1, _W2 = "transformer.h.{}.mlp.w1.weight", "transformer.h.{}.mlp.w2.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snapshots.write_original(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = snapshots.to_native(snapshots.original_weights())
    return snapshots.write_native(tmp_path_factory.mktemp("native") / "tiny-Native", weights)


@pytest.fixture(scope="module")
def int4() -> Weights:
    return snapshots.rtn_int4(snapshots.to_native(snapshots.original_weights()))


def _compare(tmp_path: Path, reference: Path, candidate: Path, claim: str) -> tuple[int, Any]:
    report = tmp_path / "report"
    argv = [str(reference), str(candidate), "--claim", claim, "--profile", "demo", "--quiet"]
    status = compare.main([*argv, "--samples", _SAMPLES, "--report", str(report)])
    return status, json.loads((report / "parity.json").read_text(encoding="utf-8"))


def _failed(report: Any) -> set[str]:
    return {m["name"] for m in report["measurements"] if m["verdict"] == "fail"}


def _note(report: Any, name: str) -> str:
    return next(str(m["note"]) for m in report["measurements"] if m["name"] == name)


def _with_targets(source: str, order: Callable[[Rule], tuple[str, ...]]) -> WeightMap:
    return WeightMap(
        tuple(
            Rule(rule.source, order(rule), rule.op) if rule.source == source else rule
            for rule in RULES
        )
    )


def _gate_and_up_swapped() -> WeightMap:
    targets = {rule.source: rule.targets for rule in RULES}
    other = {_W1: targets[_W2], _W2: targets[_W1]}
    return WeightMap(tuple(Rule(r.source, other.get(r.source, r.targets), r.op) for r in RULES))


def test_a_right_conversion_passes(tmp_path: Path, original: Path, native: Path) -> None:
    status, report = _compare(tmp_path, original, native, "converted")

    assert (status, report["verdict"]) == (0, "pass")
    measured = {m["name"]: m["value"] for m in report["measurements"]}
    assert measured["logits_max_delta"] == 0
    assert measured["witness_max_delta"] < 1e-4


def test_the_reference_against_itself_is_exactly_nothing(tmp_path: Path, native: Path) -> None:
    status, report = _compare(tmp_path, native, native, "converted")

    assert (status, report["verdict"]) == (0, "pass")
    measured = {m["name"]: m["value"] for m in report["measurements"]}
    nothing = ("logits_max_delta", "kl_mean", "kl_p99", "modules_at_fault", "greedy_unexplained")
    assert [measured[name] for name in nothing] == [0] * 5
    assert measured["logits_bit_equal"] == measured["top1_agreement"] == 1
    assert {layer["local"] for layer in report["layers"]} == {0}
    assert {layer["propagated"] for layer in report["layers"]} == {0}


def test_one_at_a_time_is_the_noise_floor_and_far_below_what_is_measured(
    tmp_path: Path, native: Path, int4: Weights
) -> None:
    candidate = snapshots.write_native(tmp_path / "tiny-Int4", int4, quantized=True)

    _, report = _compare(tmp_path, native, candidate, "quantized")

    measured = {m["name"]: m["value"] for m in report["measurements"]}
    assert 0 <= measured["noise_floor"] < 1e-9
    assert measured["noise_floor"] < measured["kl_mean"] / 1e6
    # the candidate is what it is held against here: plain rounding
    assert measured["kl_rtn_ratio"] == pytest.approx(1, abs=0.25)


def test_rounding_to_nearest_passes(tmp_path: Path, native: Path, int4: Weights) -> None:
    candidate = snapshots.write_native(tmp_path / "tiny-Int4", int4, quantized=True)

    status, report = _compare(tmp_path, native, candidate, "quantized")

    assert (status, _failed(report)) == (0, set())
    assert report["verdict"] in ("pass", "warn")


def test_gate_and_up_swapped_in_the_conversion_fail(tmp_path: Path, original: Path) -> None:
    weights = snapshots.to_native(snapshots.original_weights(), _gate_and_up_swapped())
    candidate = snapshots.write_native(tmp_path / "swapped", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "logits_max_delta", "witness_max_delta"} <= _failed(report)
    assert "gate_proj" in _note(report, "tensors_differing")


def test_gate_and_up_swapped_in_the_table_itself_are_caught_by_the_witness_alone(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _gate_and_up_swapped()
    weights = snapshots.to_native(snapshots.original_weights(), wrong)
    candidate = snapshots.write_native(tmp_path / "swapped", weights)
    monkeypatch.setattr(qwen_vl.weight_map, "WEIGHT_MAP", wrong)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert _failed(report) == {"witness_max_delta"}  # the image rows are not concerned


def test_q_k_v_out_of_order_fail(tmp_path: Path, original: Path) -> None:
    table = _with_targets(
        "transformer.h.{}.attn.c_attn.weight", lambda r: (r.targets[1], r.targets[0], r.targets[2])
    )
    weights = snapshots.to_native(snapshots.original_weights(), table)
    candidate = snapshots.write_native(tmp_path / "shuffled", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "witness_max_delta"} <= _failed(report)


def test_vision_rows_taken_as_stacked_instead_of_per_head_fail(
    tmp_path: Path, original: Path
) -> None:
    source = "transformer.visual.transformer.resblocks.{}.attn.in_proj.weight"
    table = WeightMap(
        tuple(
            Rule(r.source, r.targets, type(r.op)("rows")) if r.source == source else r
            for r in RULES
        )
    )
    weights = snapshots.to_native(snapshots.original_weights(), table)
    candidate = snapshots.write_native(tmp_path / "stacked", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "witness_max_delta"} <= _failed(report)


@pytest.mark.parametrize("factor", [1.5, 1.1])
def test_one_scale_tensor_that_is_off_fails_and_is_named(
    tmp_path: Path, native: Path, int4: Weights, factor: float
) -> None:
    module = "model.language_model.layers.1.mlp.up_proj"
    scales = (int4[f"{module}.scales"] * factor).astype(np.float16)
    damaged = int4 | {f"{module}.scales": scales}
    candidate = snapshots.write_native(tmp_path / "scaled", damaged, quantized=True)

    status, report = _compare(tmp_path, native, candidate, "quantized")

    assert status == 1
    assert "weight_scale_deviation_max" in _failed(report)
    assert module in _note(report, "weight_scale_deviation_max")
    assert ("weight_error_max" in _failed(report)) == (factor == 1.5)


def test_c_proj_replaced_by_noise_fails_and_the_layer_and_its_tensor_are_named(
    tmp_path: Path, original: Path
) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    dice = np.random.default_rng(1)
    name = "model.language_model.layers.1.self_attn.o_proj.weight"
    weights[name] = (0.02 * dice.standard_normal(weights[name].shape)).astype(np.float32)
    candidate = snapshots.write_native(tmp_path / "noise", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "logits_max_delta", "modules_at_fault"} <= _failed(report)
    assert report["culprit"].startswith("model.language_model.layers.1 ")
    assert name in report["culprit"]
    # the layer before is innocent, the norm after it only passes the error on
    local = {layer["name"]: layer["local"] for layer in report["layers"]}
    assert local["model.language_model.layers.0"] == 0
    assert local["model.language_model.norm"] == 0
    propagated = {layer["name"]: layer["propagated"] for layer in report["layers"]}
    assert propagated["model.language_model.norm"] > 0


def test_the_tokenizer_of_the_other_helper_revision_fails(tmp_path: Path, original: Path) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    candidate = snapshots.write_native(tmp_path / "r1", weights)
    settings = candidate / "tokenizer_config.json"
    settings.write_text(json.dumps({"style": "r1"}), encoding="utf-8")
    write_manifest(candidate, Manifest(files=scan(candidate)))

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert "token_ids_differing" in _failed(report)
    # every prompt with a picture, and none without; the strings hold no picture's label
    shown = sum(sample["images"] > 0 for sample in report["samples"])
    assert f"{shown} of {_SAMPLES} prompts" in _note(report, "token_ids_differing")


def test_a_vision_tower_off_by_one_epsilon_fails(tmp_path: Path, original: Path) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    config = snapshots.native_config()
    config["vision_config"]["layer_norm_eps"] = 1e-5
    candidate = snapshots.write_snapshot(tmp_path / "epsilon", weights, config)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert "settings_differing" in _failed(report)
    assert "vision_config.layer_norm_eps" in _note(report, "settings_differing")
    assert "tensors_differing" not in _failed(report)


def test_an_epsilon_that_is_wrong_in_our_own_code_is_caught_by_the_witness(
    tmp_path: Path, original: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Off(torch.nn.LayerNorm):
        def __init__(self, width: int, eps: float) -> None:
            super().__init__(width, eps=10 * eps)

    monkeypatch.setattr(torch.nn, "LayerNorm", Off)

    status, report = _compare(tmp_path, original, native, "converted")

    assert status == 1
    assert "witness_image_error" in _failed(report)
    assert "tensors_differing" not in _failed(report)


def test_positions_that_are_not_interpolated_are_caught_by_the_witness(
    tmp_path: Path, original: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(table: torch.Tensor, count: int) -> torch.Tensor:
        return table[:count]

    monkeypatch.setattr(qwen_vl.vision, "stretch_positions", cut)

    status, report = _compare(tmp_path, original, native, "converted")

    assert status == 1
    assert {"witness_max_delta", "witness_image_error"} <= _failed(report)


def test_a_position_table_that_was_cut_instead_of_kept_fails(
    tmp_path: Path, original: Path
) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    name = "model.vision_tower.position_embedding"
    weights[name] = np.concatenate([weights[name][:16]] * 16)
    candidate = snapshots.write_native(tmp_path / "cut", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert {"tensors_differing", "modules_at_fault"} <= _failed(report)
    assert report["culprit"].startswith(name)


def test_two_layers_exchanged_fail(tmp_path: Path, native: Path, int4: Weights) -> None:
    def other(name: str) -> str:
        swap = {".layers.0.": ".layers.1.", ".layers.1.": ".layers.0."}
        at = next((a for a in swap if a in name and "language_model" in name), None)
        return name if at is None else name.replace(at, swap[at])

    candidate = snapshots.write_native(
        tmp_path / "exchanged", {other(name): array for name, array in int4.items()}, quantized=True
    )

    status, report = _compare(tmp_path, native, candidate, "quantized")

    assert status == 1
    assert {"weight_error_max", "kept_tensors_differing"} <= _failed(report)


def test_groups_that_point_to_other_groups_fail(
    tmp_path: Path, native: Path, int4: Weights
) -> None:
    module = "model.language_model.layers.0.mlp.down_proj"
    g_idx = np.roll(int4[f"{module}.g_idx"], snapshots.GROUP)
    # uneven scales, as trained weights have them; equal ones would hide a wrong group
    factors = np.array([[1], [4], [0.5], [1], [3], [1], [1], [2]], np.float16)
    uneven = int4[f"{module}.scales"] * factors
    reference = snapshots.read_weights(native)
    good = int4 | {f"{module}.scales": uneven}
    reference[f"{module}.weight"] = snapshots.plain_weight(good, module).T
    yardstick = snapshots.write_native(tmp_path / "uneven", reference)
    candidate = snapshots.write_native(
        tmp_path / "regrouped", good | {f"{module}.g_idx": g_idx}, quantized=True
    )

    status, report = _compare(tmp_path, yardstick, candidate, "quantized")

    assert status == 1
    assert "weight_error_max" in _failed(report)
    assert module in _note(report, "weight_error_max")


def test_the_reference_passed_off_as_int4_fails(tmp_path: Path, native: Path) -> None:
    candidate = snapshots.write_native(
        tmp_path / "tiny-Int4", snapshots.read_weights(native), quantized=True
    )

    status, report = _compare(tmp_path, native, candidate, "quantized")

    assert status == 1
    assert {"quantized_linears", "kl_max"} <= _failed(report)


def test_the_reference_itself_named_as_candidate_fails(tmp_path: Path) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    same = snapshots.write_native(tmp_path / "tiny", weights)

    status, report = _compare(tmp_path, same, same, "quantized")

    assert status == 1
    assert {"same_content", "quantized_linears", "kl_max"} <= _failed(report)


def test_a_tensor_that_is_not_there_fails_without_asking_the_models(
    tmp_path: Path, original: Path
) -> None:
    weights = snapshots.to_native(snapshots.original_weights())
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    candidate = snapshots.write_native(tmp_path / "incomplete", weights)

    status, report = _compare(tmp_path, original, candidate, "converted")

    assert status == 1
    assert _failed(report) == {"tensors_unpaired"}
    assert report["samples"] == []

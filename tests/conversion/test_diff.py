import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.comparing import Report
from conversion.diff import diff_checkpoints, main
from conversion.options import ToTransformersOptions
from conversion.steps import to_transformers
from model_store.errors import CheckpointError
from tests.conversion import published

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=[False, True], ids=["bf16", "int4"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An original snapshot and its native twin; tests only read them."""
    folder = tmp_path_factory.mktemp("pair")
    original = published.make_snapshot(folder / "original", int4=request.param)
    native = folder / "native"
    to_transformers(original, native, ToTransformersOptions(str(original)))
    return [original, native]


def _copy(native: Path, target: Path, change: Callable[[State], object]) -> Path:
    """The native checkpoint with its tensors changed."""
    state = load_file(native / "model.safetensors")
    change(state)
    return _weights(target, state, config=(native / "config.json").read_bytes())


def _weights(target: Path, state: State, *, config: bytes | None = None) -> Path:
    target.mkdir()
    save_file(state, target / "model.safetensors")
    if config is not None:
        (target / "config.json").write_bytes(config)
    return target


def _diff_floats(tmp_path: Path, one: list[float], two: list[float]) -> Report:
    dtype = torch.float32
    a = _weights(tmp_path / "a", {"w": torch.tensor(one, dtype=dtype)})
    b = _weights(tmp_path / "b", {"w": torch.tensor(two, dtype=dtype)})
    return diff_checkpoints(a, b)


def test_the_original_and_its_native_twin_are_identical(pair: list[Path]) -> None:
    for a, b in (pair, pair[::-1]):
        report = diff_checkpoints(a, b)

        assert report.identical
        assert report.compared == len(load_file(pair[1] / "model.safetensors"))
        assert set(report.layouts) == {"original", "native"}


def test_a_checkpoint_is_identical_to_itself(pair: list[Path]) -> None:
    for folder in pair:
        assert diff_checkpoints(folder, folder).identical


def test_one_flipped_bit_is_found_in_a_part_of_a_fused_tensor(
    pair: list[Path], tmp_path: Path
) -> None:
    name = "model.vision_tower.layers.1.self_attn.k_proj.weight"

    def flip(state: State) -> None:
        state[name].view(torch.int16)[-1, -1] ^= 1

    changed = _copy(pair[1], tmp_path / "changed", flip)

    for a, b in ((pair[0], changed), (changed, pair[0]), (pair[1], changed)):
        report = diff_checkpoints(a, b)
        assert not report.identical
        assert [(d.name, d.differing) for d in report.unequal] == [(name, 1)]
        assert report.unequal[0].max_abs is not None
        assert report.unequal[0].max_abs > 0


@pytest.mark.parametrize("letters", ["qk", "kv"])
def test_swapped_projections_are_not_identical(
    pair: list[Path], tmp_path: Path, letters: str
) -> None:
    one, two = (f"model.language_model.layers.0.self_attn.{x}_proj.bias" for x in letters)

    def swap(state: State) -> None:
        state[one], state[two] = state[two], state[one]

    report = diff_checkpoints(pair[0], _copy(pair[1], tmp_path / "changed", swap))

    assert {d.name for d in report.unequal} == {one, two}


def test_a_missing_and_an_extra_tensor_are_named(pair: list[Path], tmp_path: Path) -> None:
    def rename(state: State) -> None:
        state["model.language_model.norm.bias"] = state.pop("model.language_model.norm.weight")

    changed = _copy(pair[1], tmp_path / "changed", rename)

    for reference in pair:
        report = diff_checkpoints(reference, changed)
        assert not report.identical
        assert report.missing == ("model.language_model.norm.weight",)
        assert report.extra == ("model.language_model.norm.bias",)
        assert report.unequal == ()
    assert diff_checkpoints(changed, pair[0]).missing == ("model.language_model.norm.bias",)


def test_one_tensor_more_is_not_identical_in_either_direction(tmp_path: Path) -> None:
    a = _weights(tmp_path / "a", {"x": torch.ones(3)})
    b = _weights(tmp_path / "b", {"x": torch.ones(3), "y": torch.ones(3)})

    for report in (diff_checkpoints(a, b), diff_checkpoints(b, a)):
        assert not report.identical
        assert (report.compared, report.unequal) == (1, ())


def test_two_checkpoints_without_a_tensor_are_not_identical(tmp_path: Path) -> None:
    a, b = _weights(tmp_path / "a", {}), _weights(tmp_path / "b", {})

    assert not diff_checkpoints(a, b).identical


def test_another_shape_or_dtype_is_not_compared_by_value(pair: list[Path], tmp_path: Path) -> None:
    norm, head = "model.language_model.norm.weight", "lm_head.weight"

    def change(state: State) -> None:
        state[norm] = state[norm].to(torch.float32)
        state[head] = state[head].T.contiguous()

    report = diff_checkpoints(pair[0], _copy(pair[1], tmp_path / "changed", change))

    assert not report.identical
    found = {m.name: (m.reference[-8:], m.candidate[-9:]) for m in report.mismatched}
    assert found[norm][1] == "F32 (64,)"
    assert found[head] == ("480, 64)", "(64, 480)")
    assert len(found) == 2
    assert report.unequal == ()


def _original_state(folder: Path) -> State:
    state: State = {}
    for shard in sorted(folder.glob("*.bin")):
        state |= torch.load(shard, weights_only=True)
    return state


def test_a_tensor_of_2023_without_a_native_place_is_not_identical(
    pair: list[Path], tmp_path: Path
) -> None:
    state = _original_state(pair[0]) | {"transformer.h.0.attn.masked_bias": torch.zeros(1)}
    changed = _weights(tmp_path / "x", state, config=(pair[0] / "config.json").read_bytes())

    for report in (diff_checkpoints(changed, pair[1]), diff_checkpoints(pair[1], changed)):
        assert not report.identical
        assert "masked_bias" in report.unmapped[0]
        assert report.missing == report.extra == ()


def test_a_fused_tensor_that_does_not_divide_is_not_identical(
    pair: list[Path], tmp_path: Path
) -> None:
    state = _original_state(pair[0])
    fused = "transformer.visual.transformer.resblocks.0.attn.in_proj.bias"
    state[fused] = state[fused][:-1].clone()
    changed = _weights(tmp_path / "x", state, config=(pair[0] / "config.json").read_bytes())

    report = diff_checkpoints(changed, pair[1])

    assert not report.identical
    assert fused in report.unmapped[0]
    assert len(report.extra) == 3  # q, k and v


def test_distances_are_measured(tmp_path: Path) -> None:
    report = _diff_floats(tmp_path, [1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 3.0, 2.5])

    (difference,) = report.unequal
    assert (difference.elements, difference.differing) == (4, 2)
    assert (difference.max_abs, difference.mean_abs) == (1.5, 0.5)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([1.0, float("nan")], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, float("nan")]),
        ([float("inf"), 1.0], [float("inf"), 2.0]),
        ([0.0, 0.0], [0.0, -0.0]),
    ],
    ids=["nan", "nan-in-candidate", "infinity", "negative-zero"],
)
def test_values_that_arithmetic_would_wave_through_are_unequal(
    tmp_path: Path, one: list[float], two: list[float]
) -> None:
    report = _diff_floats(tmp_path, one, two)

    assert not report.identical
    assert report.unequal[0].differing == 1
    json.dumps(report.json(), allow_nan=False)


def test_the_same_nan_is_identical(tmp_path: Path) -> None:
    assert _diff_floats(tmp_path, [float("nan"), 1.0], [float("nan"), 1.0]).identical


def test_any_other_architecture_is_compared_name_by_name(tmp_path: Path) -> None:
    config = b'{"model_type": "llama"}'
    a = _weights(tmp_path / "a", {"x": torch.ones(3), "y": torch.zeros(0)}, config=config)
    b = _weights(tmp_path / "b", {"x": torch.ones(3), "y": torch.zeros(0)})

    assert diff_checkpoints(a, b).identical
    assert diff_checkpoints(a / "model.safetensors", b).layouts == ("other", "other")


def test_checkpoints_without_a_tensor_in_common_are_not_identical(tmp_path: Path) -> None:
    a = _weights(tmp_path / "a", {"x": torch.ones(3)})
    b = _weights(tmp_path / "b", {"y": torch.ones(3)})

    report = diff_checkpoints(a, b)

    assert not report.identical
    assert (report.compared, report.missing, report.extra) == (0, ("x",), ("y",))


def test_a_shard_that_is_cut_short_stops_the_comparison(pair: list[Path], tmp_path: Path) -> None:
    cut = _copy(pair[1], tmp_path / "cut", lambda state: state)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])

    with pytest.raises(CheckpointError):
        diff_checkpoints(pair[0], cut)


def test_the_command_exits_by_its_verdict(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = _copy(pair[1], tmp_path / "changed", lambda state: state.pop("lm_head.weight"))

    assert main([str(pair[0]), str(pair[1]), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("identical: ")
    assert main([str(pair[0]), str(changed), "--json", "--quiet"]) == 1
    assert json.loads(capsys.readouterr().out)["missing"] == ["lm_head.weight"]
    assert main([str(pair[0]), str(tmp_path / "nowhere"), "--quiet"]) == 4
    assert "error: " in capsys.readouterr().err

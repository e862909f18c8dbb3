"""A cast gives torch's numbers, keeps NaN, counts what overflowed, and says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.casting import cast_snapshot
from conversion.float_casts import FLOAT_NAMES, cast
from conversion.options import CastOptions
from model_store.checkpoint import open_checkpoint
from model_store.errors import UsageError
from model_store.manifest import Manifest, read_manifest, scan, verify_snapshot, write_manifest
from model_store.tensors import from_bits
from tests.conversion import published

_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_WIDTH = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}


def _by_torch(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    signed = torch.from_numpy(bits.view(np.int32 if source == "F32" else np.int16))
    made = signed.view(_TORCH[source]).to(_TORCH[target])
    return made.view(torch.int32 if target == "F32" else torch.int16).numpy().view(_WIDTH[target])


def _ours(bits: np.ndarray, source: str, target: str) -> tuple[np.ndarray, int]:
    made, overflowed = cast(from_bits(source, bits), target)
    return np.frombuffer(made.data, _WIDTH[target]), overflowed


def _patterns(source: str) -> np.ndarray:
    """Every pattern of 16 bits; of 32, all upper halves with the lower ones near ties."""
    upper = np.arange(2**16, dtype=np.uint32)
    if source != "F32":
        return upper.astype(np.uint16)
    bf16_lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    f16_lower = [0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0xF000, 0xEFFF]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**32, 2_000_000, dtype=np.uint32)
    made = [(upper << 16) | low for low in bf16_lower + f16_lower]
    return np.concatenate([*made, drawn]).astype(np.uint32)


@pytest.mark.parametrize("source", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("target", ["F32", "BF16", "F16"])
def test_every_number_is_rounded_as_torch_does(source: str, target: str) -> None:
    bits = _patterns(source)

    made, _ = _ours(bits, source, target)

    expected = _by_torch(bits, source, target)
    wide = torch.from_numpy(bits.view(np.int32 if source == "F32" else np.int16))
    numbers = ~torch.isnan(wide.view(_TORCH[source]).float()).numpy()
    np.testing.assert_array_equal(made[numbers], expected[numbers])
    view = torch.from_numpy(made.view(np.int32 if target == "F32" else np.int16).copy())
    nans = torch.isnan(view.view(_TORCH[target]).float()).numpy()
    np.testing.assert_array_equal(nans, ~numbers)


@pytest.mark.parametrize(
    ("source", "target"), [("F32", "F16"), ("BF16", "F16"), ("BF16", "F32"), ("F32", "F32")]
)
def test_where_torch_has_one_rule_for_nan_it_is_ours(source: str, target: str) -> None:
    bits = _patterns(source)

    made, _ = _ours(bits, source, target)

    np.testing.assert_array_equal(made, _by_torch(bits, source, target))


def test_a_nan_keeps_its_sign_and_upper_payload() -> None:
    bits = np.array([0x7F800001, 0xFF800001, 0x7FA12345, 0xFFFFFFFF], dtype=np.uint32)

    narrow, _ = _ours(bits, "F32", "BF16")
    half = np.array([0x7C01, 0xFE00, 0x7FFF], dtype=np.uint16)
    wide, _ = _ours(half, "F16", "F32")

    assert [hex(n) for n in narrow] == ["0x7fc0", "0xffc0", "0x7fe1", "0xffff"]
    assert [hex(n) for n in wide] == ["0x7fc02000", "0xffc00000", "0x7fffe000"]


def test_overflow_counts_finite_values_only() -> None:
    values = np.array([65504, 65519.99, 65520, -1e30, np.inf, np.nan, 3.4e38, 1], dtype=np.float32)

    half, half_count = _ours(values.view(np.uint32), "F32", "F16")
    brain, brain_count = _ours(values.view(np.uint32), "F32", "BF16")

    assert half_count == 3
    assert np.isinf(half.view(np.float16)).sum() == 4
    assert brain_count == 1  # 3.4e38 is above the largest bfloat16 and its half unit
    assert [hex(n) for n in brain[[4, 6]]] == ["0x7f80", "0x7f80"]


def _snapshot(folder: Path, state: dict[str, torch.Tensor], config: object = None) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "who": "me"})
    (folder / "config.json").write_text(json.dumps(config or {"dtype": "float32"}))
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


def test_a_snapshot_is_cast_and_says_what_happened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"a": torch.randn(300, 70), "b": torch.tensor([1e6, 1.0, -1e9]), "n": torch.arange(3)}
    source = _snapshot(tmp_path / "s", state, {"dtype": "float32", "text_config": {"dtype": "x"}})

    result = cast_snapshot(source, tmp_path / "t", CastOptions("s", to="float16"))

    made = load_file(result.folder / "model.safetensors")
    assert {name: t.dtype for name, t in made.items()} == {
        "a": torch.float16, "b": torch.float16, "n": torch.int64,
    }  # fmt: skip
    assert torch.equal(made["a"], state["a"].half())
    assert result.tally.counts("overflowed") == {"b": 2}
    changes = (result.folder / "CHANGES.md").read_text()
    assert "2 finite values became infinite, in `b` (2)." in changes
    assert "1 of I64" in changes
    config = json.loads((result.folder / "config.json").read_text())
    assert config == {"dtype": "float16", "text_config": {"dtype": "float16"}}
    (step,) = verify_snapshot(result.folder).lineage
    assert (step.step, step.options["to"], step.facts["cast"]) == ("cast", "float16", 2)
    with open_checkpoint(result.folder) as checkpoint:
        assert checkpoint.metadata["who"] == "me"


def test_patterns_choose_the_tensors(tmp_path: Path) -> None:
    state = {f"layers.{n}.{kind}": torch.ones(4) for n in range(2) for kind in ("norm", "proj")}
    source = _snapshot(tmp_path / "s", state)

    options = CastOptions("s", include=("layers.*",), exclude=("*.norm",))
    made = load_file(cast_snapshot(source, tmp_path / "t", options).folder / "model.safetensors")

    changed = {name for name, tensor in made.items() if tensor.dtype == torch.bfloat16}
    assert changed == {"layers.0.proj", "layers.1.proj"}
    with pytest.raises(UsageError, match="matches no tensor"):
        cast_snapshot(source, tmp_path / "u", CastOptions("s", include=("layer.*",)))


def test_packed_modules_keep_their_dtypes(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s", int4=True)

    made = cast_snapshot(source, tmp_path / "t", CastOptions("s")).folder

    with open_checkpoint(made) as checkpoint:
        kinds = {name: checkpoint.info(name).dtype for name in checkpoint.names()}
    assert kinds["transformer.h.0.mlp.w1.scales"] == "F16"
    assert kinds["transformer.h.0.ln_1.weight"] == "BF16"


def test_the_config_of_2023_says_the_new_dtype_in_every_key(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s")

    made = cast_snapshot(source, tmp_path / "t", CastOptions("s", to="float32")).folder

    config = json.loads((made / "config.json").read_text())
    assert (config["torch_dtype"], config["bf16"], config["fp16"]) == ("float32", False, False)
    assert list(made.glob("*.bin"))  # the format of the source is kept


@pytest.mark.parametrize("name", sorted(FLOAT_NAMES))
def test_casting_to_float32_and_back_is_the_identity(tmp_path: Path, name: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16) if name != "float32" else _patterns("F32")
    dtype = FLOAT_NAMES[name]
    wide, _ = cast(from_bits(dtype, bits), "F32")

    back, overflowed = cast(wide, dtype)

    exponent = 0x7C00 if name == "float16" else 0x7F80
    quiet = np.frombuffer(back.data, bits.dtype)
    signaling = (bits & 0x7FFF) > exponent if name != "float32" else np.zeros(bits.size, bool)
    np.testing.assert_array_equal(quiet[~signaling], bits[~signaling])
    assert overflowed == 0


def test_the_same_cast_gives_the_same_bytes(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s")

    made = [
        cast_snapshot(source, tmp_path / name, CastOptions("s", to="float32")).folder
        for name in ("one", "two")
    ]

    assert read_manifest(made[0]) == read_manifest(made[1])

"""Which bytes are hashed, and what happens to those that are not what the manifest says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conversion.casting import cast_snapshot
from conversion.errors import ConflictingWeightsError
from conversion.options import CastOptions, ReshardOptions, ToSafetensorsOptions
from conversion.steps import reshard, to_safetensors
from conversion.verifying import verify_conversion
from model_store.errors import CheckpointError, DigestMismatchError
from model_store.manifest import Manifest, read_manifest, scan, verify_snapshot, write_manifest
from tests.conversion import published

SMALL = "40KB"


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """A snapshot of ours: its manifest has every tensor's digest."""
    source = published.make_snapshot(tmp_path / "source")
    return to_safetensors(source, tmp_path / "safe", ToSafetensorsOptions("s")).folder


def flip(path: Path, place: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def forget(folder: Path, name: str, sha256: str) -> None:
    """Give a tensor another digest in the manifest."""
    manifest = read_manifest(folder)
    tensors = dict(manifest.tensors or {})
    tensors[name] = replace(tensors[name], sha256=sha256)
    write_manifest(folder, replace(manifest, tensors=tensors))


def test_known_digests_and_computed_ones_are_the_same(safe: Path, tmp_path: Path) -> None:
    known = read_manifest(safe)
    write_manifest(tmp_path / "safe", replace(known, tensors=None))
    unknown = reshard(safe, tmp_path / "a", ReshardOptions("s", max_shard_size=SMALL))
    write_manifest(safe, known)

    for name, verify in (("b", True), ("c", False)):
        options = ReshardOptions("s", max_shard_size=SMALL, verify=verify)
        made = reshard(safe, tmp_path / name, options)
        assert made.manifest == unknown.manifest
        verify_snapshot(made.folder)


def test_an_unverified_digest_is_handed_on_and_found_out_later(safe: Path, tmp_path: Path) -> None:
    name = next(iter(read_manifest(safe).tensors or ()))
    forget(safe, name, "0" * 64)

    made = reshard(safe, tmp_path / "r", ReshardOptions("s", verify=False))

    assert made.manifest.tensors is not None
    assert made.manifest.tensors[name].sha256 == "0" * 64
    assert verify_conversion(made.folder, safe).digests == [name]


def test_a_tensor_that_is_not_its_digest_is_refused(safe: Path, tmp_path: Path) -> None:
    name = next(iter(read_manifest(safe).tensors or ()))
    forget(safe, name, "0" * 64)

    with pytest.raises(DigestMismatchError, match=name):
        reshard(safe, tmp_path / "r", ReshardOptions("s", max_shard_size=SMALL))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["safe", "source"]


def test_a_damaged_byte_is_found_on_either_way(safe: Path, tmp_path: Path) -> None:
    flip(safe / "model.safetensors")  # every tensor is hashed as it passes
    flip(tmp_path / "source" / "pytorch_model-00002-of-00002.bin", 5000)  # the files are hashed

    with pytest.raises(DigestMismatchError, match="tensor "):
        reshard(safe, tmp_path / "r", ReshardOptions("s"))
    with pytest.raises(DigestMismatchError, match=r"00002-of-00002\.bin"):
        to_safetensors(tmp_path / "source", tmp_path / "r", ToSafetensorsOptions("s"))
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors"):  # the bytes are changed
        cast_snapshot(safe, tmp_path / "r", CastOptions("s", to="float16"))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["safe", "source"]


def test_shards_that_no_tensor_is_taken_from_are_hashed_too(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    options = ToSafetensorsOptions("s", max_shard_size=SMALL)
    whole = to_safetensors(source, tmp_path / "whole", options)
    last = sorted(whole.folder.glob("*.safetensors"))[-1]
    flip(last)

    with pytest.raises(DigestMismatchError):
        reshard(whole.folder, tmp_path / "r", ReshardOptions("s"))


def both_formats(folder: Path, *, same: bool) -> Path:
    folder.mkdir()
    state = {"a": torch.arange(64.0), "b": torch.ones(3, 3)}
    save_file(state, folder / "model.safetensors")
    if not same:
        state["b"] = state["b"] * 2
    torch.save(state, folder / "pytorch_model.bin")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


def test_two_formats_side_by_side_must_agree(tmp_path: Path) -> None:
    same = both_formats(tmp_path / "same", same=True)
    other = both_formats(tmp_path / "other", same=False)

    made = to_safetensors(same, tmp_path / "made", ToSafetensorsOptions("s"))
    with pytest.raises(ConflictingWeightsError, match=r"pytorch_model\.bin.* disagree in b$"):
        to_safetensors(other, tmp_path / "no", ToSafetensorsOptions("s"))
    unseen = to_safetensors(other, tmp_path / "un", ToSafetensorsOptions("s", verify=False))

    assert not (tmp_path / "no").exists()
    assert unseen.manifest.tensors == made.manifest.tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_and_infinity_are_counted_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    odd = torch.zeros(2000, dtype=dtype)
    odd[[0, 7, 1999]] = torch.tensor([torch.nan, -torch.inf, torch.nan], dtype=dtype)
    save_file({"odd": odd, "even": torch.ones(4), "whole": torch.ones(3, dtype=torch.int64)},
              folder / "model.safetensors")  # fmt: skip
    (folder / "config.json").write_text('{"torch_dtype": "float16", "auto_map": {"A": "x/y--m.B"}}')
    write_manifest(folder, Manifest(files=scan(folder)))

    made = to_safetensors(folder, tmp_path / "t", ToSafetensorsOptions("s", allow_odd=True))

    assert made.json()["nan"] == {"odd": 2}
    assert made.json()["infinite"] == {"odd": 1}
    said = "\n".join(made.sentences())
    assert "2 values are NaN, in `odd` (2)" in said
    assert "another repository" in said
    assert "config.json says float16" in said
    assert "2 values are NaN" in (made.folder / "CHANGES.md").read_text()


def test_a_mixed_file_is_hashed_in_one_pass(tmp_path: Path) -> None:
    from model_store.shard_writer import ShardWriter
    from model_store.tensors import from_bits

    plan = [("half", "F16", (4,)), ("words", "I32", (4,)), ("last", "F16", (2,))]
    with ShardWriter(tmp_path, plan) as writer:
        order = [tensor.name for tensor in writer.plan]
        for name, dtype, shape in writer.plan:
            kind = np.uint32 if dtype == "I32" else np.uint16
            writer.add(name, from_bits(dtype, np.ones(shape, kind)))
        written = writer.finish()

    assert order == ["words", "half", "last"]  # as they lie in the file
    assert list(written.tensors) == ["half", "words", "last"]  # as they were planned


def test_a_config_nested_10_000_deep_stops_a_step_before_it_writes(tmp_path: Path) -> None:
    folder = both_formats(tmp_path / "s", same=True)
    (folder / "config.json").write_text('{"a":' * 10_000 + "1" + "}" * 10_000)
    write_manifest(folder, Manifest(files=scan(folder)))

    with pytest.raises(CheckpointError, match=r"config\.json"):
        to_safetensors(folder, tmp_path / "t", ToSafetensorsOptions("s"))

    assert [path.name for path in tmp_path.iterdir()] == ["s"]

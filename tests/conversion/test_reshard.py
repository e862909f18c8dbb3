"""Other files, same tensors: sizes, formats, headers, tied tensors, the plan, the disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import reshard as reshard_command
from conversion.casting import cast_snapshot
from conversion.diff import diff_checkpoints
from conversion.errors import DiskSpaceError, TiedError
from conversion.options import CastOptions, ReshardOptions, ToSafetensorsOptions
from conversion.running import preview_draft
from conversion.steps import draft_reshard, reshard, to_safetensors
from model_store.checkpoint import open_checkpoint
from model_store.errors import TargetExistsError, UsageError
from model_store.manifest import (
    FileEntry,
    Manifest,
    read_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)
from tests.conversion import published, transformers_models


@pytest.mark.parametrize("kind", ["keep", "safetensors", "bin"])
def test_files_stay_under_the_size_and_tensors_stay_the_same(tmp_path: Path, kind: str) -> None:
    source = published.make_snapshot(tmp_path / "s")

    made = reshard(source, tmp_path / "t", ReshardOptions("s", max_shard_size="50KB", format=kind))

    suffix = "bin" if kind == "keep" else kind
    files = sorted(made.folder.glob(f"*.{suffix}"))
    assert len(files) > 4
    with open_checkpoint(made.folder) as checkpoint:
        for file in files:
            held = [n for n in checkpoint.names() if checkpoint.file(n) == file]
            size = sum(checkpoint.info(n).nbytes for n in held)
            assert size <= 50_000 or len(held) == 1
    assert diff_checkpoints(source, made.folder).identical
    index = next(made.folder.glob("*.index.json"))
    total = json.loads(index.read_text())["metadata"]["total_size"]
    assert total == sum(t.numel() * t.element_size() for t in published.tensors().values())
    assert verify_snapshot(made.folder).lineage[-1].step == "reshard"


def test_resharding_there_and_back_gives_the_same_files(tmp_path: Path) -> None:
    first = reshard(
        published.make_snapshot(tmp_path / "s"),
        tmp_path / "a",
        ReshardOptions("s", format="safetensors"),
    ).folder

    small = reshard(first, tmp_path / "b", ReshardOptions("s", max_shard_size="30KB")).folder
    again = reshard(small, tmp_path / "c", ReshardOptions("s")).folder

    assert read_manifest(again).content == read_manifest(first).content


def test_metadata_is_kept_and_set(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s", kind="safetensors")
    options = ReshardOptions("s", metadata=("who=me", "licence=mine=yours"))
    first = reshard(source, tmp_path / "a", options).folder

    second = reshard(first, tmp_path / "b", ReshardOptions("s", metadata=("who=you",))).folder

    with open_checkpoint(second) as checkpoint:
        told = dict(checkpoint.metadata)
    assert told.pop("notice_of_change").startswith("Changed by modelferry")
    assert told == {"format": "pt", "who": "you", "licence": "mine=yours"}
    for wrong in ("who", "=x", "format=tf"):
        with pytest.raises(UsageError, match="cannot be set"):
            reshard(source, tmp_path / "c", ReshardOptions("s", metadata=(wrong,)))


def test_a_tied_tensor_is_written_once_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = transformers_models.make_snapshot(tmp_path / "s", tied=True, kind="bin")

    made = to_safetensors(
        source, tmp_path / "t", ToSafetensorsOptions("s", tied="keep-one", max_shard_size="60KB")
    ).folder

    with open_checkpoint(made) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()
        assert checkpoint.metadata["lm_head.weight"] == "model.embed_tokens.weight"
    index = json.loads((made / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    model, loading = loaded
    assert not loading["missing_keys"]
    expected = torch.load(source / "pytorch_model.bin", weights_only=True)["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, expected)
    assert "written once" in (made / "CHANGES.md").read_text()


def test_a_tied_tensor_is_written_twice_unless_asked(tmp_path: Path) -> None:
    source = transformers_models.make_snapshot(tmp_path / "s", tied=True, kind="bin")

    twice = to_safetensors(source, tmp_path / "t", ToSafetensorsOptions("s")).folder
    once = reshard(twice, tmp_path / "u", ReshardOptions("s", tied="keep-one")).folder

    with open_checkpoint(twice) as checkpoint:
        assert checkpoint.read("lm_head.weight").data == (
            checkpoint.read("model.embed_tokens.weight").data
        )
    with open_checkpoint(once) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()


def test_tensors_are_not_tied_when_no_reader_would_bring_them_back(tmp_path: Path) -> None:
    source = transformers_models.make_snapshot(tmp_path / "s", tied=True, kind="bin")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    write_manifest(source, Manifest(files=scan(source)))

    with pytest.raises(TiedError, match="tie_word_embeddings"):
        to_safetensors(source, tmp_path / "t", ToSafetensorsOptions("s", tied="keep-one"))


def test_a_dry_run_says_what_the_run_does_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published.make_snapshot(tmp_path / "s")
    argv = [str(source), "--into", str(tmp_path / "t"), "--max-shard-size", "60KB", "--json"]

    assert reshard_command.main([*argv, "--dry-run", "--quiet"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    made = reshard(source, tmp_path / "t", ReshardOptions("s", max_shard_size="60KB")).folder
    assert [shard["name"] for shard in plan["shards"]] == [
        p.name for p in sorted(made.glob("*.bin"))
    ]
    assert plan["tensors_out"] == len(published.tensors())
    on_disk = sum(path.stat().st_size for path in made.iterdir())
    assert on_disk - 60_000 < plan["needed_bytes"]
    assert plan["fits"]
    assert (plan["done"], plan["left_out"]) == (False, ["README.md", "modeling_qwen.py"])
    options = ReshardOptions("s", max_shard_size="60KB")
    again = preview_draft(source, tmp_path / "t", draft_reshard, options)
    assert again.done
    assert "nothing to do" in again.text()
    with pytest.raises(TargetExistsError):
        preview_draft(source, tmp_path / "t", draft_reshard, replace(options, format="bin"))


def test_a_full_disk_is_noticed_before_the_first_byte(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "s", kind="safetensors")
    for path in source.glob("model*"):
        path.unlink()
    size = 2 * 10**12  # bytes of bfloat16 in a file that is one hole
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    header = json.dumps({"x": entry}).encode().ljust(80)
    with (source / "model.safetensors").open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + size)
    files = (FileEntry("model.safetensors", 8 + len(header) + size, "0" * 64),)
    write_manifest(source, Manifest(files=files))

    with pytest.raises(DiskSpaceError, match="are needed"):
        cast_snapshot(source, tmp_path / "t", CastOptions("s", to="float32", verify=False))

    assert [path.name for path in tmp_path.iterdir()] == ["s"]

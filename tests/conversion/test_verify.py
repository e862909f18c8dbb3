"""A proof holds for what a step made, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import cast, rename, reshard, text_only, to_original, to_transformers
from conversion import verify as command
from conversion.errors import NotItsSourceError
from conversion.verifying import Proof, verify_conversion
from model_store.errors import DigestMismatchError, UsageError
from model_store.manifest import MANIFEST_NAME, read_manifest, scan, write_manifest
from tests.conversion import published, transformers_models


@pytest.fixture
def native(tmp_path: Path) -> tuple[Path, Path]:
    source = published.make_snapshot(tmp_path / "source")
    assert to_transformers.main([f"{source}", "--into", f"{tmp_path}/native", "--quiet"]) == 0
    return tmp_path / "native", source


def seal(folder: Path, *, tensors: bool = False) -> None:
    """Make a folder that was tampered with agree with its own file digests again."""
    old = read_manifest(folder)
    new = replace(old, files=scan(folder), tensors=None if tensors else old.tensors)
    write_manifest(folder, new)


def test_every_step_is_proved_from_its_source(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    steps: tuple[tuple[Callable[[Sequence[str]], int], Path, str, list[str]], ...] = (
        (to_transformers.main, source, "native", []),
        (to_original.main, tmp_path / "native", "back", []),
        (text_only.main, source, "text", []),
        (cast.main, source, "half", ["--to", "float16"]),
        (reshard.main, tmp_path / "native", "small", ["--max-shard-size", "50KB"]),
    )

    for main, made_of, name, flags in steps:
        argv = [f"{made_of}", "--into", f"{tmp_path / name}", *flags, "--quiet"]
        assert main(argv) == 0
        proof = verify_conversion(tmp_path / name, made_of)

        assert proof.holds
        assert proof.tensors == len(read_manifest(tmp_path / name).tensors or ())
        assert proof.files > 0


def test_one_flipped_bit_is_found(native: tuple[Path, Path]) -> None:
    converted, source = native
    path = converted / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    seal(converted)

    proof = verify_conversion(converted, source)

    assert not proof.holds
    assert [difference.differing for difference in proof.unequal] == [1]
    assert proof.digests == [proof.unequal[0].name]


def test_swapped_gates_are_found(native: tuple[Path, Path]) -> None:
    converted, source = native
    path = converted / "model.safetensors"
    state = load_file(path)
    at = "model.language_model.layers.0.mlp."
    gate, up = state[at + "gate_proj.weight"], state[at + "up_proj.weight"]
    state |= {at + "gate_proj.weight": up, at + "up_proj.weight": gate}
    save_file(state, path)
    seal(converted, tensors=True)

    proof = verify_conversion(converted, source)

    assert {difference.name for difference in proof.unequal} == {
        at + "gate_proj.weight",
        at + "up_proj.weight",
    }


def test_missing_and_changed_files_are_found(native: tuple[Path, Path]) -> None:
    converted, source = native
    state = load_file(converted / "model.safetensors")
    del state["lm_head.weight"]
    state["more"] = torch.zeros(1)
    save_file(state, converted / "model.safetensors")
    (converted / "config.json").write_text('{"model_type": "qwen_vl"}')
    seal(converted)

    proof = verify_conversion(converted, source)

    assert (proof.missing, proof.extra) == (["lm_head.weight"], ["more"])
    assert proof.other_files == ["config.json"]
    assert not proof.holds


def test_a_snapshot_of_another_parent_is_refused(native: tuple[Path, Path], tmp_path: Path) -> None:
    converted, source = native
    other = published.make_snapshot(tmp_path / "other", int4=True)

    with pytest.raises(NotItsSourceError, match="was made of"):
        verify_conversion(converted, other)
    with pytest.raises(NotItsSourceError, match="by no step"):
        verify_conversion(source, source)


def test_damage_on_either_side_is_named_first(native: tuple[Path, Path]) -> None:
    converted, source = native
    for folder, name in ((source, "pytorch_model-00001-of-00002.bin"), (converted, "config.json")):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[:-3] + b"xxx")
        with pytest.raises(DigestMismatchError) as caught:
            verify_conversion(converted, source)
        assert caught.value.path == name
        path.write_bytes(data)


def test_a_map_that_was_another_one_is_said(native: tuple[Path, Path]) -> None:
    converted, source = native
    manifest = json.loads((converted / MANIFEST_NAME).read_text())
    manifest["lineage"][-1]["facts"]["weight_map"] = "0" * 64
    (converted / MANIFEST_NAME).write_text(json.dumps(manifest))

    proof = verify_conversion(converted, source)

    assert len(proof.facts) == 1
    assert "weight_map" in proof.facts[0]


def test_nothing_compared_proves_nothing() -> None:
    assert not Proof("cast", "a", "b").holds


def test_tables_and_adapters_are_asked_for(tmp_path: Path) -> None:
    source = transformers_models.make_snapshot(tmp_path / "s", "llama")
    rules = tmp_path / "rules.toml"
    names = load_names(source)
    rules.write_text(
        "\n".join(f'[[rule]]\nsource = "{name}"\ntarget = "x.{name}"' for name in names)
    )
    argv = [f"{source}", "--into", f"{tmp_path}/r", "--rules", f"{rules}", "--quiet"]
    assert rename.main(argv) == 0

    with pytest.raises(UsageError, match="rules"):
        verify_conversion(tmp_path / "r", source)
    assert verify_conversion(tmp_path / "r", source, inputs=rules).holds
    rules.write_text(rules.read_text() + "\n# another table\n")
    assert verify_conversion(tmp_path / "r", source, inputs=rules).facts


def load_names(folder: Path) -> list[str]:
    from model_store.checkpoint import open_checkpoint
    from model_store.weight_rules import split_index

    with open_checkpoint(folder) as checkpoint:
        return list(dict.fromkeys(split_index(name)[0] for name in checkpoint.names()))


def test_the_command_exits_by_its_verdict(
    native: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    converted, source = native

    assert command.main([f"{converted}", "--source", f"{source}", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("proved: ")
    (converted / "generation_config.json").write_text("{}")
    seal(converted)
    assert command.main([f"{converted}", "--source", f"{source}", "--quiet"]) == 1
    assert "another file: generation_config.json" in capsys.readouterr().out
    assert command.main([f"{converted}", "--source", f"{converted}", "--quiet"]) == 4

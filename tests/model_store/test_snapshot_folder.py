"""New snapshots appear whole, replace only what is ours, and are recognised when finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.errors import BusyError, NotASnapshotError, TargetExistsError
from model_store.manifest import MANIFEST_NAME, Manifest, Step, read_manifest, scan, write_manifest
from model_store.snapshot_folder import finished_result, new_snapshot

STEP = Step("convert", {"layout": "native"}, "modelferry 0.1.0", "a" * 64)


def make(target: Path, text: str = "{}", *, replace: bool = False) -> None:
    with new_snapshot(target, replace=replace) as folder:
        (folder / "config.json").write_text(text)
        write_manifest(folder, Manifest(scan(folder), lineage=(STEP,)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "snapshot"
    with new_snapshot(target) as folder:
        assert not target.exists()
        write_manifest(folder, Manifest(()))

    assert read_manifest(target) == Manifest(())
    assert names(target.parent) == ["snapshot"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_snapshot(tmp_path / "s") as folder:
        (folder / "config.json").write_text("x" * (1 // 0))

    assert names(tmp_path) == []


def test_a_block_without_a_manifest_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotASnapshotError), new_snapshot(tmp_path / "s"):
        pass

    assert names(tmp_path) == []


def test_a_killed_runs_leftover_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "model.safetensors").write_text("half")

    make(tmp_path / "s")

    assert names(tmp_path) == ["s"]
    assert names(tmp_path / "s") == ["config.json", MANIFEST_NAME]


def test_a_snapshot_is_replaced_only_when_asked(tmp_path: Path) -> None:
    make(tmp_path / "s")

    with pytest.raises(TargetExistsError, match="already"):
        make(tmp_path / "s", "[]")
    make(tmp_path / "s", "[]", replace=True)

    assert (tmp_path / "s" / "config.json").read_text() == "[]"
    assert names(tmp_path) == ["s"]


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    for name in ("s", "file", "link"):
        with pytest.raises(TargetExistsError):
            make(tmp_path / name, replace=True)

    assert (tmp_path / "s" / "thesis.tex").read_text() == "x"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()

    make(tmp_path / "s")

    assert names(tmp_path / "s") == ["config.json", MANIFEST_NAME]


def test_two_runs_do_not_build_the_same_snapshot(tmp_path: Path) -> None:
    with new_snapshot(tmp_path / "s") as folder:
        write_manifest(folder, Manifest(()))
        with pytest.raises(BusyError):
            make(tmp_path / "s")

    assert names(tmp_path) == ["s"]


def test_a_finished_result_is_recognised_by_its_step(tmp_path: Path) -> None:
    make(tmp_path / "s")
    other = Step("convert", {"layout": "original"}, STEP.tool, STEP.parent)

    assert finished_result(tmp_path / "s", STEP) == read_manifest(tmp_path / "s")
    assert finished_result(tmp_path / "s", other) is None
    assert finished_result(tmp_path / "missing", STEP) is None

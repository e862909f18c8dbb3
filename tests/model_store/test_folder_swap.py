"""A folder that is replaced is never lost, wherever the process is killed."""

from __future__ import annotations

from pathlib import Path

from model_store.folder_swap import put_in_place, rescue
from model_store.manifest import Manifest, read_manifest, scan, write_manifest
from model_store.snapshot_folder import new_snapshot


def _folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text(text)
    write_manifest(path, Manifest(scan(path)))
    return path


def test_the_new_folder_takes_the_name_and_the_old_one_is_gone(tmp_path: Path) -> None:
    target, building = _folder(tmp_path / "s", "old"), _folder(tmp_path / "b", "new")

    put_in_place(building, target)

    assert (target / "config.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_two_renames_does_not_lose_the_old_folder(tmp_path: Path) -> None:
    target = _folder(tmp_path / "s", "old")
    target.rename(tmp_path / ".s.old")  # where a kill leaves it

    rescue(target)

    assert (target / "config.json").read_text() == "old"


def test_a_snapshot_that_a_kill_had_set_aside_survives_a_failing_next_run(tmp_path: Path) -> None:
    target = _folder(tmp_path / "s", "old")
    target.rename(tmp_path / ".s.old")

    try:
        with new_snapshot(target, replace=True):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass

    assert read_manifest(target).entry("config.json") is not None


def test_a_rescue_never_touches_a_folder_that_stands(tmp_path: Path) -> None:
    target = _folder(tmp_path / "s", "new")
    _folder(tmp_path / ".s.old", "old")

    rescue(target)

    assert (target / "config.json").read_text() == "new"


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    place, link = tmp_path / "disk", tmp_path / "s"
    place.mkdir()
    link.symlink_to(place)

    with new_snapshot(link) as building:
        (building / "config.json").write_text("{}")
        write_manifest(building, Manifest(scan(building)))

    assert link.is_symlink()
    assert (place / "config.json").read_text() == "{}"

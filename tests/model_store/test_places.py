"""Places: everything below FERRY_HOME, under names that every system can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.places import Home, home


def test_the_home_is_configurable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FERRY_HOME", str(tmp_path))

    assert home() == Home(tmp_path)


@pytest.mark.parametrize("value", [None, ""])
def test_the_default_home_is_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FERRY_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("FERRY_HOME", value)

    assert home().root == tmp_path / ".cache" / "modelferry"


def test_places_have_names_that_every_system_can_hold(tmp_path: Path) -> None:
    store = Home(tmp_path)

    places = [
        store.blob("ab" * 32),
        store.snapshot("modelscope", "qwen", "Qwen-VL", "listing-sha256:" + "ab" * 32),
        store.ref("huggingface", "Qwen", "Qwen-VL", "refs/pr/1"),
        store.lock("blobs/ab"),
    ]

    for place in places:
        assert ":" not in place.relative_to(tmp_path).as_posix()
    assert places[0].parent.name == "ab"
    assert places[2].name == "refs%2Fpr%2F1"
    assert places[3].parent == tmp_path / "locks"


@pytest.mark.parametrize("revision", ["..", ".", "../../x", "a/../../b", "..\\..", "a:b"])
def test_a_revision_never_names_a_place_outside_its_repository(
    tmp_path: Path, revision: str
) -> None:
    store = Home(tmp_path)

    place = store.ref("huggingface", "Qwen", "Qwen-VL", revision)

    folder = tmp_path / "refs" / "huggingface" / "Qwen" / "Qwen-VL"
    assert place.parent == folder
    assert place.name not in (".", "..")
    assert not set(place.name) & set("/\\:")

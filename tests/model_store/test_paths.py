"""Paths from outside stay inside, on every system."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.errors import UnsafePathError
from model_store.paths import check_paths, check_relative_path, inside


@pytest.mark.parametrize("path", ["a", "a/b.json", ".gitattributes", "a..b/c", "图/名.bin", "con1"])
def test_plain_paths_are_taken(path: str) -> None:
    assert check_relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "..", "../a", "a/../../b", "a/./b", "a//b", "a/", "./a", "a\\b", "C:/a",
        "c:a", "a\nb", "a\x00b", "a\x7f", "a./b", "a /b", "NUL", "a/con.txt", "LPT1.bin", "x" * 256,
    ],
)  # fmt: skip
def test_paths_that_climb_or_that_some_system_cannot_hold_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        check_relative_path(path)


@pytest.mark.parametrize(
    "listing", [["a", "a"], ["README.md", "readme.md"], ["a", "a/b"], ["A/b", "a"], ["ß", "ss"]]
)
def test_a_listing_that_clashes_is_refused(listing: list[str]) -> None:
    with pytest.raises(UnsafePathError):
        check_paths(listing)


def test_a_listing_without_clashes_is_kept_in_order() -> None:
    assert check_paths(["b/x", "a", "b/y"]) == ["b/x", "a", "b/y"]


def test_joining_stays_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    with pytest.raises(UnsafePathError):
        inside(tmp_path, "../b")


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)

    with pytest.raises(UnsafePathError, match="symbolic link"):
        inside(tmp_path / "folder", "link/x")

"""Manifests: canonical, self-consistent, about content and not about cards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import (
    DigestMismatchError,
    NotASnapshotError,
    StoreError,
    UnsafePathError,
)
from model_store.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Source,
    Step,
    TensorDigest,
    is_content,
    parse_manifest,
    read_manifest,
    refresh_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)

DIGEST = "ab" * 32


def full_manifest() -> Manifest:
    source = Source("modelscope", "qwen/Qwen-VL-Chat", "v1.0.0", "c" * 40)
    step = Step("convert", {"dtype": None}, "modelferry 0.1.0", DIGEST, source, {"map": DIGEST})
    return Manifest(
        files=(FileEntry("model.safetensors", 3, DIGEST), FileEntry("README.md", 0, DIGEST)),
        source=source,
        lineage=(step,),
        tensors={"a": TensorDigest("BF16", (2, 3), DIGEST)},
    )


def snapshot(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    write_manifest(folder, Manifest(scan(folder)))
    return folder


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, full_manifest())

    again = read_manifest(tmp_path)

    assert again == full_manifest()
    assert [entry.path for entry in again.files] == ["README.md", "model.safetensors"]


def test_its_bytes_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    manifest = full_manifest()
    turned = replace(manifest, files=tuple(reversed(manifest.files)))

    assert manifest.json() == turned.json()


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model.bin", True),
        ("config.json", True),
        ("qwen.tiktoken", True),
        ("tokenizer.json", True),
        ("README.md", False),
        ("configuration.json", False),
        ("LICENSE", False),
        ("records/parity.json", False),
        ("records/config.json", False),
    ],
)
def test_the_content_digest_covers_what_makes_the_checkpoint(path: str, counts: bool) -> None:
    assert is_content(path) is counts
    changed = Manifest((FileEntry(path, 1, DIGEST),)).content_digest
    assert (changed != Manifest(()).content_digest) is counts


def edited(**changes: Any) -> bytes:
    return json.dumps(full_manifest().json() | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        edited(schema="ferry.manifest/99"),
        edited(content_digest="0" * 64),
        edited(files=3),
        edited(files=[{"path": "a"}]),
        edited(lineage=[{"step": "x"}]),
        edited(source="x"),
        edited(tensors={"a": {}}),
        edited(files=[{"path": "a.bin", "size": 2**60, "sha256": DIGEST}]),
        edited(files=[{"path": "a\ud800.bin", "size": 1, "sha256": DIGEST}]),
        edited(files=[{"path": "a.bin", "size": 1, "sha256": DIGEST}]).replace(
            b": 1,", b": 1e999,"
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises((NotASnapshotError, UnsafePathError)):
        parse_manifest(data, name="m")


@pytest.mark.parametrize(("size", "sha256"), [(-1, DIGEST), (1, "AB" * 32), (1, "ab"), (1, "")])
def test_an_entry_with_a_bad_size_or_digest_is_refused(size: int, sha256: str) -> None:
    with pytest.raises(StoreError):
        FileEntry("a", size, sha256)


def test_a_manifest_cannot_name_files_outside_its_folder() -> None:
    with pytest.raises(UnsafePathError):
        Manifest((FileEntry("../a", 1, DIGEST),))


def test_a_folder_without_a_manifest_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(NotASnapshotError):
        read_manifest(tmp_path)
    with pytest.raises(NotASnapshotError):
        read_manifest(tmp_path / "missing")


def test_a_scan_skips_the_manifest_and_leftovers(tmp_path: Path) -> None:
    for name in ("config.json", MANIFEST_NAME, "model.safetensors.7.partial"):
        (tmp_path / name).write_text("x")

    assert [entry.path for entry in scan(tmp_path)] == ["config.json"]


def test_a_scan_refuses_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")

    with pytest.raises(StoreError, match="plain file"):
        scan(tmp_path)


def test_a_card_can_be_added_in_place(tmp_path: Path) -> None:
    snapshot(tmp_path, config__json="{}")
    before = read_manifest(tmp_path)
    (tmp_path / "README.md").write_text("card")

    after = refresh_manifest(tmp_path)

    assert after.content_digest == before.content_digest
    assert after.entry("README.md") is not None
    assert verify_snapshot(tmp_path) == after


def test_content_cannot_be_added_in_place(tmp_path: Path) -> None:
    snapshot(tmp_path, config__json="{}")
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(StoreError, match="changed after"):
        refresh_manifest(tmp_path)


def test_verifying_finds_a_changed_and_a_missing_file(tmp_path: Path) -> None:
    snapshot(tmp_path, a="1", b="2")

    (tmp_path / "a").write_text("3")
    with pytest.raises(DigestMismatchError) as caught:
        verify_snapshot(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(StoreError, match="a is missing"):
        verify_snapshot(tmp_path)

    assert caught.value.path == "a"

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_tools.server.app import running_hub
from hub_tools.server.commits import Entry, make_commit
from hub_tools.server.store import BlobMismatchError, BlobStore
from model_store.errors import BusyError, StoreError, UnsafePathError
from tests.hub_tools.hub_calls import WEIGHTS, call, files_below, fill, sample_root, sha256


def _head(root: Path, repo_id: str = "qwen/Demo", revision: str = "main") -> str:
    with running_hub(root) as hub:
        return str(
            call(hub.endpoint, "GET", f"/api/models/{repo_id}/revision/{revision}").json()["sha"]
        )


def _entry(path: str) -> Entry:
    return Entry(path, 1, "a" * 64, "b" * 40, lfs=False)


def test_a_commit_id_depends_on_what_it_says_and_not_on_the_clock() -> None:
    early = make_commit([_entry("b"), _entry("a")], parents=(), message="m", created=1.0)
    late = make_commit([_entry("a"), _entry("b")], parents=(), message="m", created=2.0)
    other = make_commit([_entry("a")], parents=(), message="m", created=1.0)

    assert early.id == late.id
    assert early.id != other.id


def test_paths_that_no_folder_can_hold_are_refused() -> None:
    for path in ("../evil", "/etc/passwd", "a\\b", "con", "a."):
        with pytest.raises(UnsafePathError):
            make_commit([_entry(path)], parents=(), message="", created=0)
    with pytest.raises(UnsafePathError):
        make_commit([_entry("a"), _entry("A")], parents=(), message="", created=0)


def test_received_bytes_that_are_not_the_announced_ones_leave_nothing(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)

    for data in (b"evil", b"goo", b"goods and more"):
        with pytest.raises(BlobMismatchError):
            blobs.receive([data], size=4, sha256=sha256(b"good"))

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_client_that_sends_without_end_is_stopped_early(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x" * 100

    with pytest.raises(BlobMismatchError):
        BlobStore(tmp_path).receive(endless(), size=150, sha256=sha256(b""))

    assert taken == 2


def test_two_hubs_on_one_root_are_refused(tmp_path: Path) -> None:
    with running_hub(sample_root(tmp_path)), pytest.raises(BusyError), running_hub(tmp_path):
        pass


def test_an_unchanged_root_keeps_its_commits_and_is_not_hashed_again(tmp_path: Path) -> None:
    first = _head(sample_root(tmp_path))
    readme = tmp_path / "qwen/Demo/README.md"
    times = readme.stat().st_mtime_ns
    readme.write_bytes(b"# NEW\n")  # same length and time: only a second hashing could tell
    os.utime(readme, ns=(times, times))

    assert _head(tmp_path) == first


def test_equal_folders_on_two_machines_are_equal_commits(tmp_path: Path) -> None:
    assert _head(sample_root(tmp_path / "one")) == _head(sample_root(tmp_path / "two"))


def test_a_changed_folder_becomes_a_new_commit_and_the_old_one_stays(tmp_path: Path) -> None:
    old = _head(sample_root(tmp_path))
    fill(tmp_path / "qwen/Demo", {"README.md": b"# changed\n"})

    with running_hub(tmp_path) as hub:
        new = call(hub.endpoint, "GET", "/api/models/qwen/Demo/revision/main").json()["sha"]
        now = call(hub.endpoint, "GET", "/qwen/Demo/resolve/main/README.md").body
        before = call(hub.endpoint, "GET", f"/qwen/Demo/resolve/{old}/README.md").body
        commits = call(hub.endpoint, "GET", "/api/models/qwen/Demo/commits/main").json()

    assert now == b"# changed\n"
    assert before == b"# now\n"
    assert [commit["id"] for commit in commits] == [new, old]


def test_a_file_overwritten_in_place_never_passes_as_the_old_blob(tmp_path: Path) -> None:
    old = _head(sample_root(tmp_path))
    with (tmp_path / "qwen/Demo/model.safetensors").open("r+b") as weights:
        weights.write(b"XX")  # the blob is a second name of this file

    with running_hub(tmp_path) as hub:
        answer = call(hub.endpoint, "GET", f"/qwen/Demo/resolve/{old}/model.safetensors")
        now = call(hub.endpoint, "GET", "/qwen/Demo/resolve/main/model.safetensors")

    assert answer.status == 500
    assert now.body == b"XX" + WEIGHTS[2:]


def test_serving_never_changes_the_folders(tmp_path: Path) -> None:
    root = sample_root(tmp_path)
    before = files_below(root)

    _head(root)

    assert files_below(root) == before


def test_a_repository_with_only_tags_shows_the_newest_as_its_default_branch(tmp_path: Path) -> None:
    for tag in ("v1.9.0", "v1.10.0", "v1.2.0"):
        fill(tmp_path / f"qwen/Tagged@{tag}", {"README.md": tag.encode()})

    main = _head(tmp_path, "qwen/Tagged")
    newest = _head(tmp_path, "qwen/Tagged", "v1.10.0")
    fill(tmp_path / "qwen/Tagged@v2", {"README.md": b"v2"})
    later = _head(tmp_path, "qwen/Tagged")

    assert main == newest
    assert later == _head(tmp_path, "qwen/Tagged", "v2") != main


def test_a_link_out_of_the_root_is_not_served(tmp_path: Path) -> None:
    root = sample_root(tmp_path / "root")
    (tmp_path / "secret").write_text("s3cret")
    (root / "qwen/Demo/leak").symlink_to(tmp_path / "secret")

    with pytest.raises(StoreError, match="link out of"), running_hub(root):
        pass


def test_a_killed_upload_leaves_no_half_file_and_the_hub_starts_again(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hub_tools.server.store import BlobStore\n"
        "def slow():\n"
        "    yield b'x' * 10\n"
        "    print('half', flush=True); sys.stdin.read()\n"
        f"BlobStore(Path({str(tmp_path / '.hub')!r})).receive(slow(), size=20, sha256='0' * 64)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()

    assert list((tmp_path / ".hub/incoming").iterdir()) != []
    assert len(_head(sample_root(tmp_path))) == 40
    assert not (tmp_path / ".hub/incoming").exists()
    assert not list((tmp_path / ".hub/blobs").rglob("0" * 64))

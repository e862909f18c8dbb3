import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.errors import (
    HubUnreachableError,
    OfflineError,
    RepoNotFoundError,
    RevisionMovedError,
    RevisionNotFoundError,
)
from hub_tools.retries import RetryPolicy
from hub_tools.server.app import running_hub
from hub_tools.snapshots import download_snapshot, local_target, plan_download, resolve_snapshot
from hub_tools.stored import is_complete
from model_store.errors import (
    DigestMismatchError,
    NotASnapshotError,
    TargetExistsError,
    UnsafePathError,
    UsageError,
)
from model_store.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Step,
    read_manifest,
    refresh_manifest,
    scan,
    verify_snapshot,
    write_manifest,
)
from tests.hub_tools.checkpoints import FILES, REPO, WEIGHTS, contents, reach, write_files
from tests.hub_tools.faulty_hub import FaultyHub, corrupted, faulty_hub, refused, replaced

HUBS = pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def nothing_in(folder: Path) -> bool:
    return not any(path.is_file() and path.suffix != ".lock" for path in folder.rglob("*"))


@HUBS
def test_a_snapshot_holds_the_files_and_a_manifest(
    hub: FaultyHub, tmp_path: Path, hub_name: str
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")

    folder = download_snapshot(f"{hub_name}:{REPO}", around=around)

    manifest = verify_snapshot(folder)
    assert contents(folder) == FILES
    assert manifest.source is not None
    assert (manifest.source.hub, manifest.source.repo_id) == (hub_name, REPO)
    assert folder == around.home.snapshot(hub_name, "qwen", "tiny", manifest.source.commit)


def test_both_dialects_give_the_same_bytes_and_the_same_digest(
    hub: FaultyHub, tmp_path: Path
) -> None:
    ours = [
        download_snapshot(f"{name}:{REPO}", around=reach(hub.endpoint, tmp_path / name))
        for name in ("modelscope", "huggingface")
    ]

    first, second = (read_manifest(folder) for folder in ours)
    assert contents(ours[0]) == contents(ours[1])
    assert first.content_digest == second.content_digest
    assert first.files == second.files


def test_the_second_dialect_fetches_no_weights_again(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    download_snapshot(f"modelscope:{REPO}", around=around)
    hub.seen.clear()

    download_snapshot(f"huggingface:{REPO}", around=around)

    assert hub.requests("model.safetensors") == []


@HUBS
def test_a_complete_snapshot_costs_the_pin_only(
    hub: FaultyHub, tmp_path: Path, hub_name: str
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    first = download_snapshot(f"{hub_name}:{REPO}", around=around)
    commit = read_manifest(first).source.commit  # type: ignore[union-attr]
    hub.seen.clear()

    again = download_snapshot(f"{hub_name}:{REPO}", revision="main", around=around)
    requests = len(hub.seen)
    by_commit = download_snapshot(f"{hub_name}:{REPO}", revision=commit, around=around)

    assert first == again == by_commit
    assert requests == len(hub.seen) == 1


def test_without_a_hub_modelscope_is_asked_first(hub: FaultyHub, tmp_path: Path) -> None:
    folder = download_snapshot(REPO, around=reach(hub.endpoint, tmp_path / "home"))

    assert read_manifest(folder).source.hub == "modelscope"  # type: ignore[union-attr]


def test_what_modelscope_does_not_have_comes_from_hugging_face(
    hub: FaultyHub, tmp_path: Path
) -> None:
    hub.always["/api/v1/"] = refused(404)

    folder = download_snapshot(REPO, around=reach(hub.endpoint, tmp_path / "home"))

    assert read_manifest(folder).source.hub == "huggingface"  # type: ignore[union-attr]


def test_a_repository_that_no_hub_has_is_not_found(hub: FaultyHub, tmp_path: Path) -> None:
    with pytest.raises(RepoNotFoundError):
        download_snapshot("qwen/none", around=reach(hub.endpoint, tmp_path / "home"))

    assert nothing_in(tmp_path / "home")


@HUBS
def test_an_unknown_revision_is_not_found(hub: FaultyHub, tmp_path: Path, hub_name: str) -> None:
    around = reach(hub.endpoint, tmp_path / "home")

    with pytest.raises(RevisionNotFoundError):
        download_snapshot(f"{hub_name}:{REPO}@v9", around=around)


def test_a_hub_that_is_down_is_an_error_even_when_the_store_has_a_copy(
    hub: FaultyHub, tmp_path: Path
) -> None:
    download_snapshot(REPO, around=reach(hub.endpoint, tmp_path / "home"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = reach(f"http://127.0.0.1:{unused.getsockname()[1]}", tmp_path / "home")

        with pytest.raises(HubUnreachableError) as caught:
            download_snapshot(REPO, around=replace(down, retry=RetryPolicy(attempts=1)))

    assert "--offline" in (caught.value.hint or "")


def test_offline_uses_the_store_and_asks_nobody(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    folder = download_snapshot(REPO, around=around)
    hub.seen.clear()

    offline = download_snapshot(REPO, offline=True, around=around)
    copy = download_snapshot(REPO, offline=True, target=tmp_path / "copy", around=around)

    assert offline == folder
    assert contents(copy) == FILES
    assert hub.seen == []
    with pytest.raises(OfflineError):
        download_snapshot("qwen/other", offline=True, around=around)


@HUBS
def test_a_listing_that_climbs_out_writes_nothing(
    hub: FaultyHub, tmp_path: Path, hub_name: str
) -> None:
    hub.always["/tree/"] = replaced(b"README.md", b"../evil")
    hub.always["/repo/files"] = hub.always["/tree/"]

    with pytest.raises(UnsafePathError):
        download_snapshot(f"{hub_name}:{REPO}", around=reach(hub.endpoint, tmp_path / "home"))

    assert nothing_in(tmp_path / "home")
    assert not list(tmp_path.rglob("evil*"))


def test_a_file_that_stays_corrupt_leaves_no_snapshot(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["resolve"] = corrupted
    hub.always["FilePath=model"] = corrupted
    around = reach(hub.endpoint, tmp_path / "home")

    with pytest.raises(DigestMismatchError):
        download_snapshot(REPO, around=around)

    assert not around.home.repository("modelscope", "qwen", "tiny").exists()


def test_two_revisions_share_their_blobs(tmp_path: Path) -> None:
    write_files(tmp_path / "hub" / "qwen" / "tiny@v1", FILES)
    write_files(tmp_path / "hub" / "qwen" / "tiny@v2", {**FILES, "config.json": b"{}"})
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as hub:
        around = reach(hub.endpoint, tmp_path / "home")

        one = download_snapshot(REPO, revision="v1", around=around)
        two = download_snapshot(REPO, revision="v2", around=around)

    assert one != two
    assert (one / "model.safetensors").samefile(two / "model.safetensors")
    assert (two / "config.json").read_bytes() == b"{}"
    # 6 ranges of the first, none of the second
    assert len(hub.requests("FilePath=model.safetensors")) == 6
    assert resolve_snapshot(f"{REPO}@v1", offline=True, around=around) == one


def test_a_listing_that_moves_meanwhile_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["/revisions"] = replaced(b'"CommitId"', b'"Other"')
    hub.faults["/repo/files"] = [None, replaced(b"README.md", b"READYOU.md")]
    around = reach(hub.endpoint, tmp_path / "home")

    with pytest.raises(RevisionMovedError):
        download_snapshot(f"modelscope:{REPO}", around=around)
    folder = download_snapshot(f"modelscope:{REPO}", around=around)

    commit = read_manifest(folder).source.commit  # type: ignore[union-attr]
    assert commit.startswith("listing-sha256:")
    assert folder.name == commit.replace(":", "-")
    again = download_snapshot(f"modelscope:{REPO}@{commit}", offline=True, around=around)
    assert again == folder


def test_a_truncated_file_of_a_snapshot_is_mended(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    folder = download_snapshot(REPO, around=around)
    with (folder / "model.safetensors").open("r+b") as damaged:
        damaged.truncate(1000)

    again = download_snapshot(REPO, around=around)

    assert again == folder
    assert contents(folder) == FILES


def test_verify_finds_and_mends_changed_bytes_and_keeps_records(
    hub: FaultyHub, tmp_path: Path
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    folder = download_snapshot(REPO, around=around)
    write_files(folder, {"records/parity.json": b"{}"})
    refresh_manifest(folder)
    (folder / "config.json").chmod(0o644)
    rot(folder / "config.json")

    download_snapshot(REPO, around=around)
    still_damaged = (folder / "config.json").read_bytes()
    download_snapshot(REPO, verify=True, around=around)

    assert still_damaged[:1] == b"X"
    assert contents(folder) == {**FILES, "records/parity.json": b"{}"}
    verify_snapshot(folder)


def rot(file: Path) -> None:
    """Change a byte as a failing disk does: no time stamp tells."""
    before = file.stat()
    with file.open("r+b") as damaged:
        damaged.write(b"X")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(file.parent / MANIFEST_NAME)  # the time of change cannot be put back, but outdone


@pytest.mark.parametrize("by_commit", [False, True])
def test_a_file_that_was_written_to_is_noticed_without_being_asked(
    hub: FaultyHub, tmp_path: Path, by_commit: bool
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    folder = download_snapshot(REPO, around=around)
    commit = read_manifest(folder).source.commit  # type: ignore[union-attr]
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    with weights.open("r+b") as damaged:
        damaged.write(b"X")

    again = download_snapshot(REPO, revision=commit if by_commit else None, around=around)

    assert contents(again) == FILES


def test_a_part_of_a_repository_does_not_pass_for_the_whole(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")

    part = download_snapshot(REPO, include=["*.json", "assets/"], exclude=["x*"], around=around)
    whole = download_snapshot(REPO, around=around)

    assert set(contents(part)) == {"config.json", "assets/a b+c.txt"}
    assert part != whole
    assert contents(whole) == FILES


@pytest.mark.parametrize("pattern", ["zzz*", "[", "Config.json"])
def test_patterns_that_want_nothing_are_refused_and_leave_no_snapshot(
    hub: FaultyHub, tmp_path: Path, pattern: str
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")

    with pytest.raises(UsageError, match="none of the"):
        download_snapshot(REPO, include=[pattern], around=around)

    assert nothing_in(tmp_path / "home")


def test_a_plan_says_what_is_missing_and_fetches_nothing(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    download_snapshot(REPO, include=["config.json"], around=around)
    hub.seen.clear()

    plan = plan_download(REPO, around=around)

    assert {file.path for file in plan.missing} == set(FILES) - {"config.json"}
    assert plan.missing_bytes == sum(map(len, FILES.values())) - len(FILES["config.json"])
    assert hub.requests("FilePath") == []


@HUBS
def test_a_target_gets_plain_files_of_its_own(
    hub: FaultyHub, tmp_path: Path, hub_name: str
) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    stored = download_snapshot(f"{hub_name}:{REPO}", include=["config.json"], around=around)

    folder = download_snapshot(f"{hub_name}:{REPO}", target=tmp_path / "copy", around=around)

    assert folder == tmp_path / "copy"
    assert contents(folder) == FILES
    assert not (folder / "config.json").samefile(stored / "config.json")
    assert all(p.stat().st_nlink == 1 for p in folder.rglob("*") if p.is_file())
    assert (folder / "model.safetensors").stat().st_mode & 0o200
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_target_that_is_not_ours_is_refused_before_anybody_is_asked(
    hub: FaultyHub, tmp_path: Path
) -> None:
    mine = write_files(tmp_path / "mine", {"thesis.tex": b"x"})

    with pytest.raises(TargetExistsError):
        download_snapshot(REPO, target=mine, around=reach(hub.endpoint, tmp_path / "home"))

    assert contents(mine) == {"thesis.tex": b"x"}
    assert hub.seen == []


def test_a_target_with_another_snapshot_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    download_snapshot(f"modelscope:{REPO}", target=tmp_path / "copy", around=around)

    with pytest.raises(TargetExistsError, match=REPO):
        download_snapshot(f"huggingface:{REPO}", target=tmp_path / "copy", around=around)


def test_a_second_run_completes_and_mends_a_target(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    target = tmp_path / "copy"
    download_snapshot(REPO, target=target, include=["*.json", "*.md"], around=around)
    write_files(target, {"README.md": b"my own card", "notes.txt": b"mine"})
    refresh_manifest(target)
    (target / "config.json").unlink()

    download_snapshot(REPO, target=target, around=around)
    hub.seen.clear()
    download_snapshot(REPO, target=target, around=around)

    assert contents(target) == {**FILES, "README.md": b"my own card", "notes.txt": b"mine"}
    assert is_complete(target)
    assert hub.requests("FilePath") == []


def published(lineage_of: bytes) -> tuple[bytes, Manifest]:
    """A manifest as a step of ours would have published it with weights `lineage_of`."""
    step = Step("convert", {"layout": "native"}, "modelferry 0.1.0", "f" * 64)
    bodies = {"config.json": FILES["config.json"], "model.safetensors": lineage_of}
    files = tuple(
        FileEntry(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in bodies.items()
    )
    manifest = Manifest(files, lineage=(step,), tensors={})
    return json.dumps(manifest.json()).encode(), manifest


@pytest.mark.parametrize("into_target", [False, True])
def test_a_published_lineage_is_taken_over(tmp_path: Path, into_target: bool) -> None:
    text, theirs = published(WEIGHTS)
    write_files(tmp_path / "hub" / "qwen" / "tiny", {**FILES, MANIFEST_NAME: text})
    with running_hub(tmp_path / "hub") as upstream:
        around = reach(upstream.endpoint, tmp_path / "home")
        target = tmp_path / "copy" if into_target else None

        folder = download_snapshot(REPO, target=target, around=around)
        again = download_snapshot(REPO, target=target, around=around)

    manifest = verify_snapshot(again)
    assert folder == again
    assert manifest.lineage == theirs.lineage
    assert manifest.tensors == {}
    assert manifest.source is not None
    assert manifest.entry(MANIFEST_NAME) is None
    assert {entry.path for entry in manifest.files} == set(FILES)


@pytest.mark.parametrize("text", [published(b"other weights")[0], b"not json", b"{}"])
def test_a_published_manifest_that_speaks_of_other_files_is_not_believed(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(tmp_path / "hub" / "qwen" / "tiny", {**FILES, MANIFEST_NAME: text})
    caplog.set_level(logging.WARNING)
    with running_hub(tmp_path / "hub") as upstream:
        folder = download_snapshot(REPO, around=reach(upstream.endpoint, tmp_path / "home"))

    assert read_manifest(folder).lineage == ()
    assert contents(folder) == FILES
    assert "not used" in caplog.text


def test_resolve_knows_folders_stored_names_and_results(hub: FaultyHub, tmp_path: Path) -> None:
    around = reach(hub.endpoint, tmp_path / "home")
    plain = write_files(tmp_path / "plain", FILES)
    result = around.home.repository("local", "me", "int4") / "latest"
    write_files(result, FILES)
    write_manifest(result, Manifest(scan(result)))

    downloaded = resolve_snapshot(REPO, around=around)
    hub.seen.clear()

    assert resolve_snapshot(REPO, around=around) == downloaded
    assert resolve_snapshot(downloaded, around=around) == downloaded
    assert resolve_snapshot("local:me/int4", around=around) == result
    assert hub.seen == []
    with pytest.raises(NotASnapshotError) as caught:
        resolve_snapshot(plain, around=around)
    assert "hub_tools.adopt" in caught.value.hint
    with pytest.raises(NotASnapshotError):
        resolve_snapshot("local:me/none", around=around)
    with pytest.raises(NotASnapshotError):
        resolve_snapshot(tmp_path / "nowhere", around=around)


def test_results_have_a_place_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_HOME", str(tmp_path))

    assert local_target("local:me/int4") == tmp_path / "snapshots" / "local/me/int4/latest"

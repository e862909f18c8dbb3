from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hub_tools.server.app import running_hub
from hub_tools.server.commits import git_blob_id
from tests.hub_tools.hub_calls import (
    ODD_NAME,
    OLD_WEIGHTS,
    WEIGHTS,
    Answer,
    call,
    fill,
    ndjson,
    sample_root,
    sha256,
)

TOKEN = "hub-test-token"
FILE = "/qwen/Demo/resolve/main/model.safetensors"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    with running_hub(sample_root(tmp_path)) as hub:
        yield hub.endpoint


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    root = fill(sample_root(tmp_path), {"me/Secret/README.md": b"hidden"})
    with running_hub(root, token=TOKEN, private=("me/Secret",)) as hub:
        yield hub.endpoint


def _create(endpoint: str, name: str = "me/New", **more: Any) -> Answer:
    owner, _, short = name.partition("/")
    body = {"name": short, "organization": owner, "visibility": "private", **more}
    return call(endpoint, "POST", "/api/repos/create", body, token=TOKEN)


def _commit(endpoint: str, *lines: tuple[str, dict[str, Any]], parent: str | None = None) -> Answer:
    header = {"summary": "change", "parentCommit": parent}
    body = ndjson(("header", header), *lines)
    return call(endpoint, "POST", "/api/models/me/New/commit/main", body, token=TOKEN)


def _inline(path: str, data: bytes) -> tuple[str, dict[str, Any]]:
    content = base64.b64encode(data).decode()
    return "file", {"path": path, "content": content, "encoding": "base64"}


def _head(endpoint: str) -> str:
    return str(call(endpoint, "GET", "/api/models/me/New", token=TOKEN).json()["sha"])


def _batch(endpoint: str, data: bytes) -> dict[str, Any]:
    body = {"operation": "upload", "objects": [{"oid": sha256(data), "size": len(data)}]}
    path = "/me/New.git/info/lfs/objects/batch"
    found: dict[str, Any] = call(endpoint, "POST", path, body, token=TOKEN).json()["objects"][0]
    return found


def test_branch_tag_commit_and_alias_give_the_bytes_of_their_revision(endpoint: str) -> None:
    sha = call(endpoint, "GET", "/api/models/qwen/Demo").json()["sha"]

    def weights(revision: str) -> bytes:
        return call(endpoint, "GET", f"/qwen/Demo/resolve/{revision}/model.safetensors").body

    assert weights("main") == weights("master") == weights(sha) == WEIGHTS
    assert weights("refs%2Fheads%2Fmain") == WEIGHTS
    assert weights("v1.0.0") == OLD_WEIGHTS


def test_owners_match_in_any_case_and_names_do_not(endpoint: str) -> None:
    assert call(endpoint, "GET", "/api/models/QWEN/Demo").json()["id"] == "qwen/Demo"
    assert call(endpoint, "GET", "/api/models/qwen/demo").status == 404


def test_a_file_comes_with_the_headers_that_clients_pin_and_check_by(endpoint: str) -> None:
    large = call(endpoint, "HEAD", FILE)
    small = call(endpoint, "HEAD", "/qwen/Demo/resolve/main/README.md")
    sha = call(endpoint, "GET", "/api/models/qwen/Demo").json()["sha"]

    assert large.body == b""
    assert large.headers["content-length"] == large.headers["x-linked-size"] == str(len(WEIGHTS))
    assert large.headers["etag"] == large.headers["x-linked-etag"] == f'"{sha256(WEIGHTS)}"'
    assert small.headers["etag"] == f'"{git_blob_id(b"# now" + bytes([10]))}"'
    assert large.headers["x-repo-commit"] == small.headers["x-repo-commit"] == sha


def test_bodies_are_never_compressed(endpoint: str) -> None:
    answer = call(endpoint, "GET", FILE, headers={"Accept-Encoding": "gzip, deflate"})

    assert "content-encoding" not in answer.headers
    assert answer.body == WEIGHTS


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=1279999-", 1279999, 1280000),
        ("bytes=-5", 1279995, 1280000),
        ("bytes=100-99999999", 100, 1280000),
    ],
)
def test_a_range_is_answered_to_the_byte(endpoint: str, asked: str, start: int, end: int) -> None:
    answer = call(endpoint, "GET", FILE, headers={"Range": asked})

    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(WEIGHTS)}"
    assert answer.body == WEIGHTS[start:end]


def test_a_range_outside_the_file_is_416_and_an_unknown_one_gives_the_whole(endpoint: str) -> None:
    outside = call(endpoint, "GET", FILE, headers={"Range": "bytes=1280000-"})
    several = call(endpoint, "GET", FILE, headers={"Range": "bytes=0-1,5-6"})
    stale = call(endpoint, "GET", FILE, headers={"Range": "bytes=0-1", "If-Range": '"other"'})

    assert outside.status == 416
    assert outside.headers["content-range"] == f"bytes */{len(WEIGHTS)}"
    assert (several.status, several.body) == (200, WEIGHTS)
    assert (stale.status, stale.body) == (200, WEIGHTS)


def test_a_name_in_any_script_is_listed_and_fetched(endpoint: str) -> None:
    tree = call(endpoint, "GET", "/api/models/qwen/Demo/tree/main?recursive=true").json()
    got = call(endpoint, "GET", f"/qwen/Demo/resolve/main/{quote(ODD_NAME)}")

    assert ODD_NAME in [item["path"] for item in tree if item["type"] == "file"]
    assert got.body == '"空"'.encode()


def test_what_is_missing_is_named_by_the_error_code(endpoint: str) -> None:
    repo = call(endpoint, "GET", "/api/models/qwen/None")
    revision = call(endpoint, "GET", "/api/models/qwen/Demo/revision/v9")
    file = call(endpoint, "HEAD", "/qwen/Demo/resolve/main/none.bin")
    odd = call(endpoint, "GET", "/api/models/qwen/a%0d%0aX-Evil:%20y")
    climbing = call(endpoint, "GET", "/qwen/Demo/resolve/main/..%2F..%2F..%2Fetc%2Fpasswd")

    assert [a.status for a in (repo, revision, file, odd, climbing)] == [404] * 5
    assert repo.headers["x-error-code"] == "RepoNotFound"
    assert revision.headers["x-error-code"] == "RevisionNotFound"
    assert file.headers["x-error-code"] == "EntryNotFound"
    assert len(file.headers["x-repo-commit"]) == 40  # lets clients remember that it is missing
    assert "x-evil" not in odd.headers


def test_a_long_listing_comes_in_pages_that_follow_each_other(tmp_path: Path) -> None:
    names = [f"f{number:03d}.txt" for number in range(25)]
    root = fill(tmp_path, {f"qwen/Many/{name}": name.encode() for name in names})

    with running_hub(root, page_size=10) as hub:
        listed, url, pages = [], "/api/models/qwen/Many/tree/main?recursive=true", 0
        while url:
            page = call(hub.endpoint, "GET", url)
            listed += [item["path"] for item in page.json()]
            link = page.headers.get("link", "")
            url, pages = link.partition(">")[0].lstrip("<"), pages + 1

    assert listed == names
    assert pages == 3


def test_many_readers_at_once_all_get_the_whole_file(endpoint: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: call(endpoint, "GET", FILE).body, range(48)))

    assert all(body == WEIGHTS for body in answers)


def test_a_wrong_token_is_told_so_even_where_none_is_needed(guarded: str) -> None:
    for path in ("/api/whoami-v2", "/api/models/qwen/Demo", FILE):
        answer = call(guarded, "GET", path, token="wrong")

        assert answer.status == 401
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"


def test_a_private_repository_is_read_with_the_token_only(guarded: str) -> None:
    path = "/me/Secret/resolve/main/README.md"

    assert call(guarded, "GET", path).status == 401
    assert call(guarded, "GET", path, token=TOKEN).body == b"hidden"
    listed = call(guarded, "GET", "/api/models").json()
    assert [repo["id"] for repo in listed] == ["qwen/Demo"]


def test_nothing_is_written_without_the_token_or_on_a_read_only_hub(
    guarded: str, tmp_path: Path
) -> None:
    body = {"name": "New", "organization": "me"}

    assert call(guarded, "POST", "/api/repos/create", body).status == 401
    assert call(guarded, "GET", "/api/models/me/New", token=TOKEN).status == 404
    with running_hub(tmp_path / "other", read_only=True) as hub:
        assert call(hub.endpoint, "POST", "/api/repos/create", body).status == 403


def test_a_web_page_of_another_origin_may_not_write(endpoint: str) -> None:
    body = {"name": "New", "organization": "me"}
    origin = {"Origin": "https://evil.example", "Content-Type": "text/plain"}

    answer = call(endpoint, "POST", "/api/repos/create", body, headers=origin)

    assert answer.status == 403


def test_creating_twice_is_409_with_the_address_that_exist_ok_reads(guarded: str) -> None:
    first, second = _create(guarded), _create(guarded)

    assert (first.status, second.status) == (200, 409)
    assert first.json()["url"] == second.json()["url"] == f"{guarded}/me/New"
    assert call(guarded, "GET", "/api/models/me/New").status == 401  # private, as asked


def test_an_upload_goes_through_preupload_batch_put_verify_and_commit(guarded: str) -> None:
    _create(guarded)
    files = [{"path": "a.json", "size": 2}, {"path": "w.safetensors", "size": len(WEIGHTS)}]
    wanted = {"files": [{**file, "sample": ""} for file in files]}

    modes = call(guarded, "POST", "/api/models/me/New/preupload/main", wanted, token=TOKEN).json()
    data = b"new " + WEIGHTS
    actions = _batch(guarded, data)["actions"]
    put = call(guarded, "PUT", actions["upload"]["href"], data)  # the address is the key
    verify = {"oid": sha256(data), "size": len(data)}
    verified = call(guarded, "POST", actions["verify"]["href"], verify, token=TOKEN)
    lfs = {"path": "w.safetensors", "algo": "sha256", **verify}
    made = _commit(guarded, _inline("a.json", b"{}"), ("lfsFile", lfs), parent=_head(guarded))
    got = call(guarded, "GET", "/me/New/resolve/main/w.safetensors", token=TOKEN)

    assert [file["uploadMode"] for file in modes["files"]] == ["regular", "lfs"]
    assert (put.status, verified.status, made.status) == (200, 200, 200)
    assert made.json()["commitOid"] == _head(guarded)
    assert got.body == data
    assert "actions" not in _batch(guarded, data)  # what is there is not sent again


def test_bytes_that_are_not_the_announced_ones_are_refused(guarded: str) -> None:
    _create(guarded)
    href = _batch(guarded, b"good")["actions"]["upload"]["href"]
    forged = href.replace(sha256(b"good"), sha256(b"evil"))

    assert call(guarded, "PUT", href, b"evil").status == 400
    assert call(guarded, "PUT", href, b"too long").status == 400
    assert call(guarded, "PUT", forged, b"evil").status == 403
    assert "actions" in _batch(guarded, b"good")
    assert "actions" in _batch(guarded, b"evil")


def test_a_commit_of_bytes_that_never_came_is_refused_whole(guarded: str) -> None:
    _create(guarded)
    before = _head(guarded)
    lfs = {"path": "w.bin", "algo": "sha256", "oid": sha256(b"never"), "size": 5}

    answer = _commit(guarded, _inline("a.json", b"{}"), ("lfsFile", lfs))

    assert answer.status == 400
    assert _head(guarded) == before


@pytest.mark.parametrize("path", ["../evil", "/abs", "a//b", "a\\b", "C:/x", ".", "x\x00y"])
def test_an_unsafe_path_is_refused_at_commit_time(guarded: str, path: str) -> None:
    _create(guarded)

    answer = _commit(guarded, _inline(path, b"x"))

    assert answer.status == 400


def test_a_commit_on_a_stale_parent_is_412(guarded: str) -> None:
    _create(guarded)
    parent = _head(guarded)
    _commit(guarded, _inline("a", b"1"), parent=parent)

    assert _commit(guarded, _inline("a", b"2"), parent=parent).status == 412
    body = call(guarded, "GET", "/me/New/resolve/main/a", token=TOKEN).body
    assert body == b"1"


def test_the_same_bytes_again_make_no_commit(guarded: str) -> None:
    _create(guarded)
    first = _commit(guarded, _inline("a", b"1")).json()["commitOid"]

    assert _commit(guarded, _inline("a", b"1")).json()["commitOid"] == first


def test_of_many_commits_at_once_on_one_parent_exactly_one_wins(guarded: str) -> None:
    _create(guarded)
    parent = _head(guarded)

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda n: _commit(guarded, _inline("a", b"%d" % n), parent=parent).status, range(8)
        )

    assert sorted(answers) == [200] + [412] * 7


def test_deleted_files_and_folders_are_gone_and_branches_and_tags_stay(guarded: str) -> None:
    _create(guarded)
    first = _commit(guarded, _inline("a", b"1"), _inline("d/x", b"2"), _inline("d/y", b"3")).json()
    tag = {"tag": "v1"}
    assert call(guarded, "POST", "/api/models/me/New/tag/main", tag, token=TOKEN).status == 200
    assert call(guarded, "POST", "/api/models/me/New/tag/main", tag, token=TOKEN).status == 409

    _commit(guarded, ("deletedFile", {"path": "a"}), ("deletedFolder", {"path": "d"}))

    assert call(guarded, "GET", "/api/models/me/New", token=TOKEN).json()["siblings"] == []
    old = call(guarded, "GET", "/api/models/me/New/revision/v1", token=TOKEN).json()
    assert old["sha"] == first["commitOid"]
    assert len(old["siblings"]) == 3


def test_a_repository_made_from_a_folder_cannot_be_deleted_over_the_api(guarded: str) -> None:
    _create(guarded)
    folder, made = (
        {"name": "Demo", "organization": "qwen"},
        {"name": "New", "organization": "me"},
    )

    assert call(guarded, "DELETE", "/api/repos/delete", folder, token=TOKEN).status == 403
    assert call(guarded, "DELETE", "/api/repos/delete", made, token=TOKEN).status == 200
    assert call(guarded, "GET", "/api/models/me/New", token=TOKEN).status == 404


def test_commits_made_over_the_api_outlive_a_restart(tmp_path: Path) -> None:
    with running_hub(tmp_path, token=TOKEN) as hub:
        _create(hub.endpoint)
        made = _commit(hub.endpoint, _inline("a", b"1")).json()["commitOid"]

    with running_hub(tmp_path, token=TOKEN) as hub:
        assert _head(hub.endpoint) == made


def test_xet_is_declined_in_words(guarded: str) -> None:
    _create(guarded)

    answer = call(guarded, "GET", "/api/models/me/New/xet-write-token/main", token=TOKEN)

    assert answer.status == 404
    assert "HF_HUB_DISABLE_XET=1" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"\xff", b"[" * 100_000])
def test_nonsense_bodies_are_400(guarded: str, body: bytes) -> None:
    _create(guarded)

    for path in ("/api/repos/create", "/api/models/me/New/preupload/main"):
        assert call(guarded, "POST", path, body, token=TOKEN).status == 400

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from hub_tools.server.app import running_hub
from tests.hub_tools.hub_calls import (
    ODD_NAME,
    OLD_WEIGHTS,
    WEIGHTS,
    Answer,
    call,
    sample_root,
    sha256,
)

TOKEN = "hub-test-token"
DEMO = "/api/v1/models/qwen/Demo"
NEW = "/api/v1/repos/models/me/New"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    with running_hub(sample_root(tmp_path), token=TOKEN) as hub:
        yield hub.endpoint


def _file(endpoint: str, revision: str, path: str = "model.safetensors", **more: str) -> Answer:
    query = urlencode({"Revision": revision, "FilePath": path})
    return call(endpoint, "GET", f"{DEMO}/repo?{query}", headers=more)


def _listing(endpoint: str, **query: str) -> dict[str, dict[str, Any]]:
    text = urlencode({"Revision": "master", "Recursive": "True", **query})
    files = call(endpoint, "GET", f"{DEMO}/repo/files?{text}").json()["Data"]["Files"]
    return {item["Path"]: item for item in files}


def _create(endpoint: str, **more: Any) -> Answer:
    body = {"Path": "me", "Name": "New", "Visibility": 1, "License": "other", **more}
    return call(endpoint, "POST", "/api/v1/models", body, token=TOKEN)


def _commit(endpoint: str, *actions: dict[str, Any]) -> Answer:
    body = {"commit_message": "change", "actions": list(actions)}
    return call(endpoint, "POST", f"{NEW}/commit/master", body, token=TOKEN)


def _inline(path: str, data: bytes, action: str = "create") -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {
        "action": action,
        "path": path,
        "type": "normal",
        "size": len(data),
        "sha256": "",
        "content": content,
        "encoding": "base64",
    }


def test_branch_tag_commit_and_alias_give_the_bytes_of_their_revision(endpoint: str) -> None:
    sha = call(endpoint, "GET", "/api/models/qwen/Demo").json()["sha"]

    assert _file(endpoint, "master").body == _file(endpoint, "main").body == WEIGHTS
    assert _file(endpoint, sha).body == WEIGHTS
    assert _file(endpoint, "v1.0.0").body == OLD_WEIGHTS


def test_the_listing_gives_the_sha256_of_every_file(endpoint: str) -> None:
    listed = _listing(endpoint)

    assert listed["model.safetensors"]["Sha256"] == sha256(WEIGHTS)
    assert listed["README.md"]["Sha256"] == sha256(b"# now\n")
    assert listed[ODD_NAME]["Type"] == "blob"
    assert listed["数据"]["Type"] == "tree"


def test_a_listing_can_be_taken_folder_by_folder(endpoint: str) -> None:
    assert list(_listing(endpoint, Root="数据", Recursive="False")) == [ODD_NAME]
    assert ODD_NAME not in _listing(endpoint, Recursive="False")


def test_a_listed_file_names_the_commit_that_changed_it_last(endpoint: str) -> None:
    _create(endpoint)
    _commit(endpoint, _inline("a", b"1"), _inline("b", b"1"))
    _commit(endpoint, _inline("b", b"2", "update"))
    query = "Revision=master&Recursive=True"
    path = f"/api/v1/models/me/New/repo/files?{query}"
    files = call(endpoint, "GET", path, token=TOKEN).json()["Data"]["Files"]
    head = call(endpoint, "GET", "/api/models/me/New", token=TOKEN).json()["sha"]

    assert {item["Path"]: item["Revision"] == head for item in files} == {"a": False, "b": True}


def test_a_part_of_a_file_is_answered_to_the_byte(endpoint: str) -> None:
    answer = _file(endpoint, "master", Range="bytes=10-19")

    assert answer.status == 206
    assert answer.headers["content-range"] == f"bytes 10-19/{len(WEIGHTS)}"
    assert answer.headers["x-linked-etag"] == f'"{sha256(WEIGHTS)}"'
    assert answer.body == WEIGHTS[10:20]


def test_revisions_are_listed_with_their_commits(endpoint: str) -> None:
    refs = call(endpoint, "GET", f"{DEMO}/revisions").json()["Data"]["RevisionMap"]

    assert [item["Revision"] for item in refs["Branches"]] == ["master"]
    assert [item["Revision"] for item in refs["Tags"]] == ["v1.0.0"]
    assert len(refs["Tags"][0]["CommitId"]) == 40


def test_what_is_missing_is_404_in_the_envelope(endpoint: str) -> None:
    answers = [
        call(endpoint, "GET", "/api/v1/models/qwen/None/repo/files"),
        call(endpoint, "GET", f"{DEMO}/repo/files?Revision=v9"),
        _file(endpoint, "master", "none.bin"),
        _file(endpoint, "master", "../../../etc/passwd"),
        call(endpoint, "GET", "/api/v1/nothing/of/the/kind"),
    ]

    assert [answer.status for answer in answers] == [404] * 5
    assert all(answer.json()["Success"] is False for answer in answers)


def test_login_gives_a_session_and_a_wrong_token_the_code_that_clients_know(endpoint: str) -> None:
    good = call(endpoint, "POST", "/api/v1/login", {"AccessToken": TOKEN})
    bad = call(endpoint, "POST", "/api/v1/login", {"AccessToken": "wrong"})
    me = call(endpoint, "GET", "/openapi/v1/users/me", headers={"Cookie": f"m_session_id={TOKEN}"})
    wrong = call(endpoint, "GET", "/openapi/v1/users/me", token="wrong")

    assert good.json()["Data"]["AccessToken"] == TOKEN
    assert good.headers["set-cookie"].startswith(f"m_session_id={TOKEN};")
    assert (bad.status, bad.json()["Code"]) == (400, 10010103009)
    assert me.json()["data"]["username"] == "local"
    assert (wrong.status, wrong.json()["code"]) == (401, "InvalidAuthentication")


def test_a_repository_is_created_as_asked_and_never_by_default(endpoint: str) -> None:
    vague = _create(endpoint, Visibility=None)
    first, second = _create(endpoint), _create(endpoint)
    info = call(endpoint, "GET", "/api/v1/models/me/New", token=TOKEN).json()["Data"]

    assert vague.status == 400
    assert (first.status, second.status) == (200, 400)
    assert second.json()["Code"] == 10010101001
    assert (info["Visibility"], info["License"]) == (1, "other")
    assert call(endpoint, "GET", "/api/v1/models/me/New").status == 401


def test_an_upload_goes_through_batch_put_commit_and_tag(endpoint: str) -> None:
    _create(endpoint)
    data = b"new " + WEIGHTS
    item = {"oid": sha256(data), "size": len(data)}
    batch = {"operation": "upload", "objects": [item]}

    offered = call(endpoint, "POST", f"{NEW}/info/lfs/objects/batch", batch, token=TOKEN)
    href = offered.json()["Data"]["objects"][0]["actions"]["upload"]["href"]
    put = call(endpoint, "PUT", href, data)
    lfs = {"action": "create", "path": "w.bin", "type": "lfs", "size": len(data)}
    made = _commit(endpoint, _inline("a.json", b"{}"), {**lfs, "sha256": sha256(data)})
    tag = {"TagName": "v1", "Ref": "master"}
    path = "/api/v1/models/me/New/repo"
    tagged = call(endpoint, "POST", f"{path}/tag", tag, token=TOKEN)
    _commit(endpoint, {"action": "delete", "path": "w.bin"})
    got = call(endpoint, "GET", f"{path}?Revision=v1&FilePath=w.bin", token=TOKEN)
    gone = call(endpoint, "GET", f"{path}?Revision=master&FilePath=w.bin", token=TOKEN)
    again = call(endpoint, "POST", f"{NEW}/info/lfs/objects/batch", batch, token=TOKEN).json()

    assert put.status == made.status == tagged.status == 200
    assert put.json()["Code"] == 200
    assert got.body == data
    assert gone.status == 404
    assert "actions" not in again["Data"]["objects"][0]


def test_a_commit_with_one_bad_action_changes_nothing(endpoint: str) -> None:
    _create(endpoint)
    lfs = {"action": "create", "path": "w", "type": "lfs", "size": 5, "sha256": sha256(b"never")}

    for bad in (lfs, _inline("../evil", b"x"), {"action": "move", "path": "a"}, {}):
        assert _commit(endpoint, _inline("a", b"1"), bad).status == 400

    files = call(endpoint, "GET", "/api/v1/models/me/New/repo/files", token=TOKEN).json()
    assert files["Data"]["Files"] == []

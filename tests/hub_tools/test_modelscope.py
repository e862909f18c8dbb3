import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.errors import (
    AuthError,
    HubProtocolError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from hub_tools.modelscope import ModelScopeClient, modelscope_client
from hub_tools.server.app import running_hub
from hub_tools.settings import HubAccess, Network, Secret
from model_store.errors import UnsafePathError
from tests.hub_tools.checkpoints import FILES, IMPATIENT, REPO, write_files
from tests.hub_tools.faulty_hub import Answer, FaultyHub, faulty_hub, replaced


def client(endpoint: str, token: str | None = None) -> ModelScopeClient:
    return modelscope_client(
        HubAccess(endpoint, Secret(token) if token else None), Network({}), IMPATIENT
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def without_commits(hub: FaultyHub) -> None:
    """Answer as a site whose revisions come without commit ids."""
    hub.always["/revisions"] = replaced(b'"CommitId"', b'"Other"')


def test_a_branch_is_pinned_to_the_commit_that_the_hub_names(hub: FaultyHub) -> None:
    pin = client(hub.endpoint).pin(REPO, "main")

    assert pin.revision == "master"
    assert len(pin.commit) == 40
    assert not pin.may_move


def test_a_branch_without_a_commit_is_pinned_by_its_listing(hub: FaultyHub) -> None:
    without_commits(hub)
    reader = client(hub.endpoint)

    pin = reader.pin(REPO)
    again = reader.pin(REPO)

    assert pin.commit.startswith("listing-sha256:")
    assert pin.may_move
    assert pin == again
    assert reader.pin(REPO, pin.commit).commit == pin.commit


def test_a_listing_pin_that_is_no_longer_current_is_not_found(hub: FaultyHub) -> None:
    without_commits(hub)

    with pytest.raises(RevisionNotFoundError):
        client(hub.endpoint).pin(REPO, "listing-sha256:" + "0" * 64)


def test_every_file_is_listed_with_its_sha256(hub: FaultyHub) -> None:
    reader = client(hub.endpoint)

    files = reader.files(reader.pin(REPO))

    assert [file.path for file in files] == sorted(FILES)
    assert all(file.sha256 for file in files)


def test_a_listing_that_is_cut_off_is_walked_folder_by_folder(hub: FaultyHub) -> None:
    def cut_off(answer: Answer) -> Answer:
        envelope = json.loads(answer.body)
        row = {"Type": "blob", "Size": 1, "Sha256": "0" * 64}
        envelope["Data"]["Files"] = [{**row, "Path": f"{i}"} for i in range(3000)]
        return replace(answer, body=json.dumps(envelope).encode())

    hub.always["Recursive=True"] = cut_off
    reader = client(hub.endpoint)

    files = reader.files(reader.pin(REPO))

    assert [file.path for file in files] == sorted(FILES)
    assert any("Root=assets" in seen.path for seen in hub.seen)


@pytest.mark.parametrize("path", ["../evil.txt", "/etc/evil", "a\\\\b.txt", "README.MD"])
def test_a_listing_with_an_unsafe_path_is_refused(hub: FaultyHub, path: str) -> None:
    hub.always["/repo/files"] = replaced(b'"Path": "config.json"', f'"Path": "{path}"'.encode())
    reader = client(hub.endpoint)

    with pytest.raises(UnsafePathError):
        reader.files(reader.pin(REPO))


def test_an_unknown_repository_is_named(hub: FaultyHub) -> None:
    with pytest.raises(RepoNotFoundError, match=r"modelscope .*qwen/none") as caught:
        client(hub.endpoint).pin("qwen/none")

    assert "MODELSCOPE_API_TOKEN" in caught.value.hint


def test_an_unknown_revision_lists_what_is_there(hub: FaultyHub) -> None:
    with pytest.raises(RevisionNotFoundError) as caught:
        client(hub.endpoint).pin(REPO, "v9")

    assert caught.value.near == ("master",)


def test_a_wrong_token_is_an_auth_error_that_does_not_show_it(tmp_path: Path) -> None:
    write_files(tmp_path / "qwen" / "tiny", FILES)
    with (
        running_hub(tmp_path, token="right", private=(REPO,)) as upstream,
        pytest.raises(AuthError) as caught,
    ):
        client(upstream.endpoint, "wrong-token").pin(REPO)

    assert "wrong-token" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"Success": false, "Message": "maintenance"}',
        b'{"Code": 500}',
        b'{"Success": true, "Data": {"Files": 3}}',
        b'{"Success": true, "Data": {"Files": [3]}}',
        b'{"Success": true, "Data": {"Files": [{"Path": "a", "Size": true}]}}',
        b'{"Success": true, "Data": {"Files": [{"Path": "a", "Size": -1}]}}',
        b'{"Success": true, "Data": {"Files": [{"Path": "a", "Size": 1, "Sha256": "zz"}]}}',
    ],
)
def test_an_answer_that_is_no_listing_is_refused(hub: FaultyHub, body: bytes) -> None:
    hub.always["/api/"] = lambda answer: replace(answer, body=body)

    with pytest.raises(HubProtocolError):
        client(hub.endpoint).pin(REPO)

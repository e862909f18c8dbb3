from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.errors import (
    AuthError,
    GatedError,
    HubProtocolError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from hub_tools.huggingface import HuggingFaceClient, huggingface_client
from hub_tools.server.app import running_hub
from hub_tools.settings import HubAccess, Network, Secret
from model_store.errors import UnsafePathError
from tests.hub_tools.checkpoints import FILES, IMPATIENT, REPO, write_files
from tests.hub_tools.faulty_hub import FaultyHub, faulty_hub, refused, replaced, with_header


def client(endpoint: str, token: str | None = None) -> HuggingFaceClient:
    return huggingface_client(
        HubAccess(endpoint, Secret(token) if token else None), Network({}), IMPATIENT
    )


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with (
        running_hub(tmp_path / "hub") as upstream,
        faulty_hub(upstream.endpoint) as proxy,
    ):
        yield proxy


def test_a_branch_is_pinned_to_a_commit_with_one_request(hub: FaultyHub) -> None:
    pin = client(hub.endpoint).pin(REPO)

    assert len(pin.commit) == 40
    assert pin.revision == "main"
    assert not pin.may_move
    assert len(hub.seen) == 1


def test_a_listing_of_several_pages_is_complete(tmp_path: Path) -> None:
    write_files(tmp_path / "qwen" / "tiny", FILES)
    with running_hub(tmp_path, page_size=2) as upstream:
        reader = client(upstream.endpoint)

        files = reader.files(reader.pin(REPO))

    assert [file.path for file in files] == sorted(FILES)
    assert {file.path: file.size for file in files} == {k: len(v) for k, v in FILES.items()}
    by_path = {file.path: file for file in files}
    assert by_path["model.safetensors"].sha256 is not None
    assert by_path["config.json"].sha256 is None
    assert by_path["config.json"].git_sha1 is not None


def test_a_listing_that_goes_on_elsewhere_is_refused(hub: FaultyHub) -> None:
    hub.always["/tree/"] = with_header("Link", '<http://127.0.0.1:1/x?cursor=2>; rel="next"')
    reader = client(hub.endpoint)

    with pytest.raises(HubProtocolError, match="another origin"):
        reader.files(reader.pin(REPO))


def test_a_listing_that_does_not_end_is_refused(hub: FaultyHub) -> None:
    reader = client(hub.endpoint)
    pin = reader.pin(REPO)
    loop = f"{hub.endpoint}/api/models/{REPO}/tree/{pin.commit}?recursive=true&expand=false"
    hub.always["/tree/"] = with_header("Link", f'<{loop}>; rel="next"')

    with pytest.raises(HubProtocolError, match="does not end"):
        reader.files(pin)


@pytest.mark.parametrize("path", ["../evil.txt", "/etc/evil", "a\\\\b.txt", "README.MD"])
def test_a_listing_with_an_unsafe_path_is_refused(hub: FaultyHub, path: str) -> None:
    hub.always["/tree/"] = replaced(b'"config.json"', f'"{path}"'.encode())
    reader = client(hub.endpoint)

    with pytest.raises(UnsafePathError):
        reader.files(reader.pin(REPO))


def test_an_unknown_repository_is_named(hub: FaultyHub) -> None:
    with pytest.raises(RepoNotFoundError, match=r"huggingface .*qwen/none") as caught:
        client(hub.endpoint).pin("qwen/none")

    assert "HF_TOKEN" in caught.value.hint


def test_an_unknown_revision_lists_what_is_there(hub: FaultyHub) -> None:
    with pytest.raises(RevisionNotFoundError, match="v9") as caught:
        client(hub.endpoint).pin(REPO, "v9")

    assert caught.value.near == ("main",)


def test_a_wrong_token_is_an_auth_error_that_does_not_show_it(tmp_path: Path) -> None:
    write_files(tmp_path / "qwen" / "tiny", FILES)
    with (
        running_hub(tmp_path, token="right", private=(REPO,)) as upstream,
        pytest.raises(AuthError) as caught,
    ):
        client(upstream.endpoint, "wrong-token").pin(REPO)

    assert "wrong-token" not in str(caught.value)
    assert "HF_TOKEN" in caught.value.hint


def test_a_private_repository_asks_for_a_login_and_opens_with_it(tmp_path: Path) -> None:
    write_files(tmp_path / "qwen" / "tiny", FILES)
    with running_hub(tmp_path, token="right", private=(REPO,)) as upstream:
        with pytest.raises(AuthError, match="private") as caught:
            client(upstream.endpoint).pin(REPO)

        pin = client(upstream.endpoint, "right").pin(REPO)

    assert "HF_TOKEN" in caught.value.hint
    assert len(pin.commit) == 40


def test_a_gated_repository_says_whom_to_ask(hub: FaultyHub) -> None:
    hub.always["/revision/"] = refused(403, X_Error_Code="GatedRepo")

    with pytest.raises(GatedError) as caught:
        client(hub.endpoint, "t").pin(REPO)

    assert "access" in caught.value.hint


@pytest.mark.parametrize("sha", [b"main", b"../../x", b"A" * 40])
def test_a_commit_that_is_none_is_refused(hub: FaultyHub, sha: bytes) -> None:
    commit = client(hub.upstream).pin(REPO).commit.encode()
    hub.always["/revision/"] = replaced(commit, sha)

    with pytest.raises(HubProtocolError, match="no commit"):
        client(hub.endpoint).pin(REPO)


@pytest.mark.parametrize("body", [b"<html>login</html>", b"[]", b"null", b'{"sha": 1}'])
def test_an_answer_that_is_no_api_is_refused(hub: FaultyHub, body: bytes) -> None:
    hub.always["/revision/"] = lambda answer: replace(answer, body=body)

    with pytest.raises(HubProtocolError):
        client(hub.endpoint).pin(REPO)

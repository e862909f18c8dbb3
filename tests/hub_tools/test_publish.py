from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub_tools import publish
from hub_tools.errors import HeadMovedError
from hub_tools.http import Http
from hub_tools.huggingface_writer import HuggingFaceWriter
from hub_tools.publishable import LocalFile
from hub_tools.retries import RetryPolicy
from hub_tools.server.app import RunningHub, running_hub
from hub_tools.server.http import HttpServer, Request, Response
from hub_tools.settings import Network, Secret
from hub_tools.writing import Changes, send_missing
from model_store.manifest import refresh_manifest
from model_store.progress import NoProgress
from model_store.records import Verdict
from tests.hub_tools.hub_calls import WEIGHTS, call, files_below, fill, sha256
from tests.hub_tools.publish_cases import (
    HUGGINGFACE,
    MODELSCOPE,
    TOKEN,
    Answer,
    make_snapshot,
    odd_hub,
)

REPO = "/api/models/ferry/Tiny"


@pytest.fixture(autouse=True)
def _login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_TOKEN_PATH", "MODELSCOPE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FERRY_HOME", str(tmp_path / "ferry"))
    for token in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(token, TOKEN)


def _use(monkeypatch: pytest.MonkeyPatch, *, modelscope: str, huggingface: str) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", modelscope)
    monkeypatch.setenv("HF_ENDPOINT", huggingface)


@pytest.fixture
def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunningHub]]:
    """Two empty hubs: the first stands for ModelScope, the second for Hugging Face."""
    roots = [tmp_path / "ms", tmp_path / "hf"]
    for root in roots:
        root.mkdir()
    with running_hub(roots[0], token=TOKEN) as one, running_hub(roots[1], token=TOKEN) as two:
        _use(monkeypatch, modelscope=one.endpoint, huggingface=two.endpoint)
        yield [one, two]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return make_snapshot(tmp_path / "snapshot")


def _publish(*args: object) -> int:
    return publish.main([*map(str, args), "--json", "--quiet"])


def _published(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, Any]]:
    assert _publish(*args) == 0, capsys.readouterr().err
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["published"]
    return found


def _both(snapshot: Path, *more: str) -> list[object]:
    return [snapshot, "--to", MODELSCOPE, "--to", HUGGINGFACE, *more]


def _info(endpoint: str, revision: str = "main") -> dict[str, Any]:
    path = f"{REPO}/revision/{revision}"
    found: dict[str, Any] = call(endpoint, "GET", path, token=TOKEN).json()
    return found


def _contents(endpoint: str, revision: str = "main") -> dict[str, bytes]:
    names = [item["rfilename"] for item in _info(endpoint, revision)["siblings"]]
    base = f"/ferry/Tiny/resolve/{revision}/"
    return {name: call(endpoint, "GET", base + name, token=TOKEN).body for name in names}


def _assert_refused(
    capsys: pytest.CaptureFixture[str], hubs: list[RunningHub], *args: object
) -> str:
    """Publishing fails with one line and a hint, prints no token, and leaves no repository."""
    status = _publish(*args)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (status, said.out) == (4, "")
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert TOKEN not in said.err
    for hub in hubs:
        assert call(hub.endpoint, "GET", REPO, token=TOKEN).status == 404
    return lines[0]


def test_both_hubs_hold_the_same_bytes_in_one_commit_with_the_tag(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _published(capsys, *_both(snapshot, "--revision-tag", "v1.0.0"))

    for hub, item in zip(hubs, done, strict=True):
        info = _info(hub.endpoint)
        assert item["commit"] == info["sha"] == _info(hub.endpoint, "v1.0.0")["sha"]
        assert info["private"] is True
        assert _contents(hub.endpoint) == files_below(snapshot)
        commits = call(hub.endpoint, "GET", f"{REPO}/commits/main", token=TOKEN).json()
        assert len(commits) == 2  # the empty one that every repository starts with, and ours
    assert [item["files"] for item in done] == [len(files_below(snapshot))] * 2
    sizes = sum(len(data) for data in files_below(snapshot).values())
    assert [item["bytes_sent"] for item in done] == [sizes] * 2


def test_the_same_bytes_again_make_no_commit_and_send_nothing(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _published(capsys, *_both(snapshot, "--revision-tag", "v1.0.0"))

    again = _published(capsys, *_both(snapshot, "--revision-tag", "v1.0.0"))

    assert [item["commit"] for item in again] == [item["commit"] for item in first]
    assert [(item["files_sent"], item["bytes_sent"]) for item in again] == [(0, 0)] * 2


def test_only_what_changed_is_sent_and_what_is_gone_here_is_gone_there(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(snapshot, {"records/note.txt": b"soon gone"})
    refresh_manifest(snapshot)
    _published(capsys, *_both(snapshot))
    (snapshot / "records/note.txt").unlink()
    refresh_manifest(snapshot)

    done = _published(capsys, *_both(snapshot))

    assert [item["files_sent"] for item in done] == [1, 1]  # the manifest
    assert all(item["bytes_sent"] < 10_000 for item in done)
    assert all(_contents(hub.endpoint) == files_below(snapshot) for hub in hubs)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = _published(capsys, *_both(snapshot, "--dry-run"))

    assert all(item["dry_run"] and item["created"] and not item["commit"] for item in done)
    assert all(item["files_sent"] == item["files"] for item in done)
    assert all(call(hub.endpoint, "GET", REPO, token=TOKEN).status == 404 for hub in hubs)


def test_visibility_and_licence_are_said_and_never_left_to_the_hub(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _published(capsys, *_both(snapshot, "--public"))

    found = call(hubs[0].endpoint, "GET", "/api/v1/models/ferry/Tiny").json()["Data"]
    assert (found["Visibility"], found["License"]) == (5, "Apache License 2.0")
    assert call(hubs[1].endpoint, "GET", REPO).json()["private"] is False


def test_a_private_publication_never_lands_in_a_public_repository(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"name": "Tiny", "organization": "ferry", "visibility": "public"}
    call(hubs[1].endpoint, "POST", "/api/repos/create", body, token=TOKEN)

    status = _publish(*_both(snapshot))

    assert status == 4
    assert "exists and is public" in capsys.readouterr().err
    assert _info(hubs[1].endpoint)["siblings"] == []
    assert call(hubs[0].endpoint, "GET", REPO, token=TOKEN).status == 404  # all checked first


def test_a_tampered_snapshot_is_refused(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (snapshot / "model.safetensors").write_bytes(b"X" + WEIGHTS[1:])

    assert "model.safetensors" in _assert_refused(capsys, hubs, *_both(snapshot))


@pytest.mark.parametrize("verdict", [None, "fail", "skipped"])
def test_without_a_green_parity_record_only_the_waiver_publishes(
    verdict: Verdict | None,
    hubs: list[RunningHub],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snapshot = make_snapshot(tmp_path / "s", verdict=verdict)

    assert "parity" in _assert_refused(capsys, hubs, *_both(snapshot))
    assert _publish(*_both(snapshot, "--allow-unverified")) == 0


def test_a_green_record_about_other_weights_proves_nothing(
    hubs: list[RunningHub], snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_snapshot(tmp_path / "other", verdict=None)
    text = (snapshot / "records/parity-native.json").read_text()
    ours = json.loads(text)["subject"]["candidate"]
    fill(other, {"records/parity-native.json": text.replace(ours, "0" * 64).encode()})
    refresh_manifest(other)

    assert "no parity record" in _assert_refused(capsys, hubs, *_both(other))


def test_a_snapshot_without_card_or_licence_is_refused(
    hubs: list[RunningHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_snapshot(tmp_path / "bare", card=False)

    said = _assert_refused(capsys, hubs, *_both(bare))

    assert "no README.md and no LICENSE" in said


def test_a_card_that_contradicts_the_record_is_refused_unless_waived(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = snapshot / "README.md"
    card.write_text(card.read_text().replace("0.01 nats", "0.001 nats"))
    refresh_manifest(snapshot)

    assert "mean KL" in _assert_refused(capsys, hubs, *_both(snapshot))
    assert _publish(*_both(snapshot, "--allow-card-problems")) == 0


def test_a_file_that_the_manifest_does_not_name_is_refused(
    hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(snapshot, {"notes/draft.txt": b"not for others"})

    assert "notes/draft.txt" in _assert_refused(capsys, hubs, *_both(snapshot))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("settings.json", '{"command": "python x.py /home/somebody/model"}'),
        ("settings.json", '{"path": "C:\\\\Users\\\\somebody"}'),
        ("notes.md", "see file:///home/me/x"),
        ("notes.md", "export HF_TOKEN=hf_" + "a" * 34),
        ("notes.txt", "ms-01234567-89ab-cdef-0123-456789abcdef"),
        ("notes.md", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("notes.yaml", f"password: {TOKEN}"),
        (".env", "A=b"),
        ("deploy.pem", "x"),
    ],
)
def test_secrets_and_paths_of_this_machine_are_found_and_not_repeated(
    name: str,
    text: str,
    hubs: list[RunningHub],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snapshot = make_snapshot(tmp_path / "s")
    fill(snapshot, {name: text.encode()})
    refresh_manifest(snapshot)

    said = _assert_refused(capsys, hubs, *_both(snapshot))

    assert name in said
    assert "aaaa" not in said
    assert "cdef" not in said


@pytest.mark.parametrize(
    "text", ["see https://example.org/home/page", "either/or, and ./data/x or ~/here/y", "1/tmp"]
)
def test_links_and_relative_paths_are_no_paths_of_this_machine(
    text: str, hubs: list[RunningHub], snapshot: Path
) -> None:
    fill(snapshot, {"notes.md": text.encode()})
    refresh_manifest(snapshot)

    assert _publish(*_both(snapshot)) == 0


def test_a_folder_that_is_no_snapshot_is_refused(
    hubs: list[RunningHub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no snapshot" in _assert_refused(capsys, hubs, *_both(tmp_path / "nowhere"))


def test_a_wrong_token_creates_nothing(
    hubs: list[RunningHub],
    snapshot: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MODELSCOPE_API_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "wrong")

    for place in (MODELSCOPE, HUGGINGFACE):
        assert "token" in _assert_refused(capsys, hubs, snapshot, "--to", place)


def test_no_token_creates_nothing(
    hubs: list[RunningHub],
    snapshot: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MODELSCOPE_API_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name)

    for place in (MODELSCOPE, HUGGINGFACE):
        assert "login" in _assert_refused(capsys, hubs, snapshot, "--to", place)


@pytest.mark.slow
def test_a_hub_that_is_down_leaves_the_other_untouched(
    hubs: list[RunningHub],
    snapshot: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    assert "127.0.0.1" in _assert_refused(capsys, hubs, *_both(snapshot))


def test_a_destination_must_say_its_hub_and_no_revision(snapshot: Path) -> None:
    for wrong in ("ferry/Tiny", "local:ferry/Tiny", "modelscope:ferry/Tiny@v1", "huggingface:x"):
        assert _publish(snapshot, "--to", wrong) == 2
    assert _publish(snapshot) == 2
    for tag in ("main", "a" * 40, "../x", "a b"):
        assert _publish(snapshot, "--to", MODELSCOPE, "--revision-tag", tag) == 2


@pytest.mark.parametrize("place", [MODELSCOPE, HUGGINGFACE])
def test_a_tag_never_moves(
    place: str, hubs: list[RunningHub], snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = _published(capsys, snapshot, "--to", place, "--revision-tag", "v1")
    fill(snapshot, {"CHANGES.md": b"changed more\n"})
    refresh_manifest(snapshot)

    status = _publish(snapshot, "--to", place, "--revision-tag", "v1")

    hub = hubs[0] if place == MODELSCOPE else hubs[1]
    assert status == 4
    assert "has a tag v1 with other files" in capsys.readouterr().err
    assert _info(hub.endpoint)["sha"] == first["commit"]


def test_a_stale_parent_overwrites_nothing(hubs: list[RunningHub], snapshot: Path) -> None:
    assert _publish(snapshot, "--to", HUGGINGFACE) == 0
    endpoint = hubs[1].endpoint
    before = _info(endpoint)["sha"]
    writer = HuggingFaceWriter(Http(endpoint, Network({}), Secret(TOKEN)))
    changes = Changes((), ("README.md",), frozenset())

    with pytest.raises(HeadMovedError):
        writer.commit("ferry/Tiny", changes, parent="0" * 40, message="late", progress=NoProgress())

    assert _info(endpoint)["sha"] == before


def test_a_hub_that_lists_other_bytes_afterwards_is_caught(
    snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, evil = sha256(WEIGHTS).encode(), sha256(b"evil").encode()

    def wrap(answer: Answer) -> Answer:
        def lying(request: Request) -> Response:
            response = answer(request)
            if "/tree/" in request.path or request.path.endswith("/repo/files"):
                assert isinstance(response.body, bytes)
                return replace(response, body=response.body.replace(good, evil))
            return response

        return lying

    for place in (MODELSCOPE, HUGGINGFACE):
        with odd_hub(tmp_path / place.partition(":")[0], wrap) as endpoint:
            _use(monkeypatch, modelscope=endpoint, huggingface=endpoint)

            assert _publish(snapshot, "--to", place) == 4

        assert "does not hold 'model.safetensors'" in capsys.readouterr().err


@pytest.mark.parametrize("place", [MODELSCOPE, HUGGINGFACE])
def test_after_a_kill_the_rerun_sends_only_what_did_not_arrive(
    place: str,
    snapshot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reached, killed = threading.Event(), threading.Event()

    def wrap(answer: Answer) -> Answer:
        def stuck(request: Request) -> Response:
            if "/commit/" in request.path and not killed.is_set():
                reached.set()
                killed.wait(30)
                raise ConnectionError("its client was killed")
            return answer(request)

        return stuck

    with odd_hub(tmp_path / "root", wrap) as endpoint:
        _use(monkeypatch, modelscope=endpoint, huggingface=endpoint)
        command = [sys.executable, "-m", "hub_tools.publish", str(snapshot), "--to", place]
        with subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL) as process:
            assert reached.wait(60)
            process.send_signal(signal.SIGKILL)
        killed.set()
        assert _info(endpoint)["siblings"] == []

        (done,) = _published(capsys, snapshot, "--to", place)

        assert done["bytes_sent"] < len(WEIGHTS)
        assert _contents(endpoint) == files_below(snapshot)


def test_the_token_never_goes_to_an_upload_address_elsewhere(tmp_path: Path) -> None:
    seen: list[Request] = []

    def storage(request: Request) -> Response:
        seen.append(request)
        assert b"".join(request.body.chunks()) == b"weights"
        return Response(200)

    place = tmp_path / "w.bin"
    place.write_bytes(b"weights")
    file = LocalFile("w.bin", place, 7, sha256(b"weights"))
    http = Http("http://127.0.0.1:1", Network({}), Secret(TOKEN), retry=RetryPolicy(attempts=1))
    with HttpServer(("127.0.0.1", 0), storage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        upload = {"href": f"{server.endpoint}/x?signature=1", "header": {"x-amz-acl": "private"}}
        offer = {"oid": file.sha256, "actions": {"upload": upload}}
        sent = send_missing(
            http, [file], ask=lambda _: [offer], per_request=9, hub="huggingface",
            progress=NoProgress(),
        )  # fmt: skip
        server.shutdown()
        thread.join()

    assert sent == [(file, None)]
    assert seen[0].header("x-amz-acl") == "private"
    assert TOKEN not in str(seen[0].headers)
    assert "Cookie" not in seen[0].headers

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub_tools import adopt, download, verify
from hub_tools.download_options import parse_rate
from hub_tools.server.app import running_hub
from model_store.errors import UsageError
from model_store.manifest import MANIFEST_NAME, read_manifest
from tests.hub_tools.checkpoints import FILES, REPO, contents, write_files
from tests.hub_tools.faulty_hub import Answer, Fault, FaultyHub, faulty_hub, held_at, refused

TOKEN = "a-token-that-must-not-be-printed"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    monkeypatch.setenv("FERRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("HF_TOKEN", "HF_HOME", "MODELSCOPE_API_TOKEN", "MODELSCOPE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", proxy.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", proxy.endpoint)
        yield proxy


def test_the_folder_is_printed(hub: FaultyHub, capsys: pytest.CaptureFixture[str]) -> None:
    status = download.main([REPO])

    out, err = capsys.readouterr()
    assert status == 0
    assert contents(Path(out.strip())) == FILES
    assert f"modelscope has {REPO}" in err


def test_json_says_what_was_fetched(hub: FaultyHub, capsys: pytest.CaptureFixture[str]) -> None:
    status = download.main([f"huggingface:{REPO}", "--json", "--quiet"])

    out, err = capsys.readouterr()
    result = json.loads(out)
    assert status == 0
    assert err == ""
    assert result["hub"] == "huggingface"
    assert result["repo_id"] == REPO
    assert result["files"] == len(FILES)
    assert result["bytes"] == sum(map(len, FILES.values()))
    assert result["content_digest"] == read_manifest(Path(result["path"])).content_digest
    assert len(result["commit"]) == 40


def test_a_dry_run_writes_nothing(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = download.main([REPO, "--dry-run", "--include", "*.json"])

    assert status == 0
    assert "1 of 1 files to fetch" in capsys.readouterr().out
    assert not (tmp_path / "home" / "blobs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nonsense"], 2, "no owner"),
        ([REPO, "--connections", "0"], 2, "--connections"),
        (["qwen/none"], 4, "no repository qwen/none"),
        ([REPO, "--revision", "v9"], 4, "no revision 'v9'"),
        ([REPO, "--offline"], 4, "not in the store"),
    ],
)
def test_a_failure_is_one_line_and_a_hint(
    hub: FaultyHub,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    actual = download.main([*arguments, "--quiet"])

    lines = capsys.readouterr().err.splitlines()
    assert actual == status
    assert message in lines[0]
    assert len(lines) == 1 or lines[1].startswith("hint: ")


def test_a_wrong_token_is_refused_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    monkeypatch.setenv("FERRY_HOME", str(tmp_path / "home"))
    with running_hub(tmp_path / "hub", token="right", private=(REPO,)) as upstream:
        for hub_name, variable in (("MODELSCOPE", "MODELSCOPE_API_TOKEN"), ("HF", "HF_TOKEN")):
            monkeypatch.setenv(f"{hub_name}_ENDPOINT", upstream.endpoint)
            monkeypatch.setenv(variable, TOKEN)

        status = download.main([REPO])

    out, err = capsys.readouterr()
    assert status == 4
    assert "does not accept the token" in err
    assert TOKEN not in out + err


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "hub_tools.download", *arguments]
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_only_the_weights_are_missing(home: Path) -> None:
    """… with 200 kB of them there, and the small files in their places."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.02)
        files = [path for path in (home / "blobs").rglob("*") if path.is_file()]
        partial = [path for path in files if path.name.endswith(".partial")]
        try:
            arrived = max((path.stat().st_blocks * 512 for path in partial), default=0)
        except FileNotFoundError:
            continue
        if arrived >= 200_000 and len(files) - len(partial) == len(FILES) - 1:
            return
    raise AssertionError("no bytes came")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_a_stopped_download_goes_on_with_the_rest(
    hub: FaultyHub, tmp_path: Path, kill: signal.Signals
) -> None:
    release = threading.Event()
    hub.faults["FilePath=model"] = [held_at(300_000, release)]
    with started(REPO) as process:
        wait_until_only_the_weights_are_missing(tmp_path / "home")
        process.send_signal(kill)
        out, err = process.communicate(timeout=30)
    release.set()
    hub.seen.clear()

    with started(REPO) as again:
        folder, again_err = again.communicate(timeout=30)

    assert process.returncode == (-9 if kill == signal.SIGKILL else 130)
    assert out == ""
    assert kill == signal.SIGKILL or "interrupted: run the same command again" in err
    assert again.returncode == 0, again_err
    assert contents(Path(folder.strip())) == FILES
    (request,) = hub.requests("FilePath=model")
    assert request.range is not None
    assert int(request.range.removeprefix("bytes=").split("-")[0]) >= 180_000
    assert hub.requests("FilePath=config") == []


def test_an_interrupt_does_not_wait_for_a_hub_that_is_silent(
    hub: FaultyHub, tmp_path: Path
) -> None:
    def silent(answer: Answer) -> Answer:
        answer.wait = 60
        return answer

    hub.always["FilePath=model"] = silent
    with started(REPO) as process:
        deadline = time.monotonic() + 30
        while not hub.requests("FilePath=model") and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        _, err = process.communicate(timeout=30)

    assert time.monotonic() - pressed < 4
    assert process.returncode == 130
    assert "stopped: " in err
    assert "interrupted: run the same command again" in err


def test_equal_files_come_from_both_hubs(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = download.main([f"modelscope:{REPO}", "--also", f"huggingface:{REPO}", "--json"])

    out, _ = capsys.readouterr()
    result = json.loads(out)
    assert status == 0
    assert [row["source"] for row in result["sources"]] == ["modelscope", "huggingface"]
    assert sum(row["bytes"] for row in result["sources"]) == result["bytes"]
    assert contents(Path(result["path"])) == FILES


@pytest.mark.parametrize("also", ["huggingface:qwen/none", "http://127.0.0.1:1/qwen/tiny"])
def test_a_mirror_that_has_nothing_does_no_harm(
    hub: FaultyHub, also: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = download.main([f"modelscope:{REPO}", "--also", also])

    out, err = capsys.readouterr()
    assert status == 0
    assert contents(Path(out.strip())) == FILES
    assert "is not used: " in err


def test_a_mirror_may_be_an_address_and_gets_no_token(
    hub: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with faulty_hub(hub.upstream) as other:
        status = download.main([f"modelscope:{REPO}", "--also", f"{other.endpoint}/{REPO}"])

        assert status == 0
        assert other.seen
        assert all("authorization" not in seen.headers for seen in other.seen)


def test_a_dry_run_counts_what_an_earlier_run_left(
    hub: FaultyHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    hub.faults["FilePath=model"] = [held_at(300_000, release)]
    with started(REPO) as process:
        wait_until_only_the_weights_are_missing(tmp_path / "home")
        process.kill()
    release.set()

    status = download.main([REPO, "--dry-run", "--json", "--quiet"])

    plan = json.loads(capsys.readouterr().out)
    assert status == 0
    assert plan["missing"] == ["model.safetensors"]
    assert plan["total_bytes"] == sum(map(len, FILES.values()))
    assert plan["kept_bytes"] >= 150_000
    assert plan["missing_bytes"] == 600_000 - plan["kept_bytes"]


@pytest.mark.parametrize(
    ("text", "rate"),
    [("20MB", 20e6), ("1.5 GB/s", 1.5e9), ("500kB", 5e5), ("64KiB", 65536), ("2000", 2000)],
)
def test_rates_read_as_people_write_them(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1MB", "10", "nanMB", "1e9", "20Mb/h"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rate(text)


@pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])
def test_a_gated_repository_says_who_must_accept_what_and_where(
    hub: FaultyHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hub_name: str,
) -> None:
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, TOKEN)
    for piece in ("/repo/files", "/revision/", "/revisions"):
        hub.always[piece] = refused(403, X_Error_Code="GatedRepo")
    hub.always["/whoami-v2"] = as_json({"name": "ada"})
    hub.always["/users/me"] = as_json({"data": {"username": "ada"}})

    status = download.main([f"{hub_name}:{REPO}", "--quiet"])

    message, hint = capsys.readouterr().err.splitlines()
    assert status == 4
    assert "'ada'" in message
    assert "not found" not in message + hint
    assert f"{hub.endpoint}/" in hint
    assert REPO in hint


def as_json(value: object) -> Fault:
    def fault(answer: Answer) -> Answer:
        return Answer(200, {}, json.dumps(value).encode())

    return fault


def test_help_answers_without_loading_the_network(tmp_path: Path) -> None:
    code = (
        "import sys, hub_tools.download, hub_tools.adopt, hub_tools.verify;"
        "print(sorted({'urllib3', 'torch', 'huggingface_hub', 'modelscope'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_plain_folder_is_adopted_once_and_then_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "plain", FILES)

    adopted = adopt.main([str(folder), "--source", "modelscope:qwen/tiny@v1"])
    sound = verify.main([str(folder), "--quiet"])
    twice = adopt.main([str(folder)])
    (folder / "config.json").write_bytes(FILES["config.json"].upper())
    damaged = verify.main([str(folder), "--quiet"])

    source = read_manifest(folder).source
    assert (adopted, sound, twice, damaged) == (0, 0, 4, 4)
    assert source is not None
    assert (source.repo_id, source.revision, source.commit) == ("qwen/tiny", "v1", "")
    assert "config.json: sha256 is" in capsys.readouterr().err


@pytest.mark.parametrize("make", [False, True], ids=["absent", "empty"])
def test_nothing_is_adopted_from_no_folder(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "x").mkdir()

    status = adopt.main([str(tmp_path / "x")])

    assert status == 4
    assert not (tmp_path / "x" / MANIFEST_NAME).exists()


def test_a_folder_without_a_manifest_is_sent_to_adopt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = verify.main([str(write_files(tmp_path / "x", FILES))])

    assert status == 4
    assert "python -m hub_tools.adopt" in capsys.readouterr().err

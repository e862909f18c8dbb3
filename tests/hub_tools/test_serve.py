from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub_tools import serve
from tests.hub_tools.hub_calls import WEIGHTS, call, sample_root

TOKEN = "serve-test-token"


@contextmanager
def _served(root: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "hub_tools.serve", str(root), "--json", "--quiet", *flags]
    environment = {**os.environ, "FERRY_SERVE_TOKEN": TOKEN}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())["endpoint"]
        finally:
            process.kill()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_endpoint_is_the_result_and_a_signal_ends_it_cleanly(
    tmp_path: Path, stop: signal.Signals
) -> None:
    with _served(sample_root(tmp_path)) as (process, endpoint):
        body = call(endpoint, "GET", "/qwen/Demo/resolve/main/model.safetensors").body
        process.send_signal(stop)
        status = process.wait(10)

    assert endpoint.startswith("http://127.0.0.1:")
    assert body == WEIGHTS
    assert status == 0


def test_the_token_of_the_environment_and_the_flags_are_in_force(tmp_path: Path) -> None:
    with _served(sample_root(tmp_path), "--private", "qwen/Demo", "--read-only") as (_, endpoint):
        anonymous = call(endpoint, "GET", "/api/models/qwen/Demo")
        allowed = call(endpoint, "GET", "/api/models/qwen/Demo", token=TOKEN)
        body = {"name": "New", "organization": "me"}
        write = call(endpoint, "POST", "/api/repos/create", body, token=TOKEN)

    assert (anonymous.status, allowed.status, write.status) == (401, 200, 403)


def test_a_root_that_is_not_there_is_one_line_and_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = serve.main([str(tmp_path / "none")])

    assert status == 2
    assert capsys.readouterr().err.splitlines()[0].endswith("none is no folder")


def test_what_cannot_be_served_is_refused_before_listening(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = serve.main([str(sample_root(tmp_path)), "--private", "qwen/Typo", "--quiet"])

    assert status == 4
    assert "qwen/Typo" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--port", "99999"], ["--host", "203.0.113.1"]])
def test_an_address_that_cannot_be_listened_at_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    status = serve.main([str(tmp_path), "--quiet", *flags])

    lines = capsys.readouterr().err.splitlines()
    assert status == 4
    assert lines[0].startswith("error: cannot listen at")
    assert lines[1].startswith("hint:")

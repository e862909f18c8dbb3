"""The demo's recipe, killed again and again: it goes on, and ends in the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_store.files import sha256_file

ROOT = Path(__file__).parents[2]
KILLS_AFTER = (3.0, 5.0, 8.0, 13.0, 21.0)  # seconds, each from a new start


def _command(work: Path) -> list[str]:
    recipe = str(ROOT / "recipes" / "demo.toml")
    return [sys.executable, "-m", "pipeline", "run", recipe, "--work", str(work)]


def _digests(work: Path) -> dict[str, str]:
    """Every file of the snapshots that the run made, records and cards included."""
    return {
        path.relative_to(work).as_posix(): sha256_file(path)
        for name in ("original", "native", "back", "int4")
        for path in sorted((work / name).rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_demo_that_is_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for number, seconds in enumerate(KILLS_AFTER):
        running = subprocess.Popen(
            _command(killed), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        # the whole group, as a machine that loses power; or the run alone, whose step goes with it
        (os.killpg if number % 2 else os.kill)(running.pid, signal.SIGKILL)
        running.wait()

    subprocess.run(_command(killed), cwd=ROOT, check=True)
    subprocess.run(_command(whole), cwd=ROOT, check=True)

    assert _digests(killed) == _digests(whole)
    steps = _steps(killed)
    assert steps
    assert all(line.endswith(": already done") for line in steps), steps
    shutil.rmtree(killed / "hub" / ".hub")
    repeated = next(line for line in _steps(killed) if ": done in" in line)
    assert repeated.startswith("[10/11] published")
    shutil.rmtree(tmp_path)


def _steps(work: Path) -> list[str]:
    said = subprocess.run(_command(work), cwd=ROOT, check=True, capture_output=True, text=True)
    return [line for line in said.stderr.splitlines() if line.startswith("[")]

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.files import sha256_file
from pipeline.run import main

# each step appends to a log and writes a folder, so a test sees what really ran
_STEP = """
import pathlib, sys
name, source, target = sys.argv[1:4]
with open("log", "a") as log:
    log.write(name + "\\n")
folder = pathlib.Path(target)
folder.mkdir(parents=True, exist_ok=True)
text = pathlib.Path(source).read_text() if source != "-" else ""
(folder / "out").write_text(text + name)
"""
_RECIPE = """
name = "t"
work = "w"
closing = "made {second}"
[[step]]
name = "first"
uses = "command"
[step.options]
run = ["{python}", "step.py", "first", "input", "{work}/first"]
output = "{work}/first"
[[step]]
name = "second"
uses = "command"
[step.options]
run = ["{python}", "step.py", "second", "{first}/out", "{work}/second"]
output = "{work}/second"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step.py").write_text(_STEP)
    (tmp_path / "input").write_text("input ")
    (tmp_path / "recipe.toml").write_text(_RECIPE)
    return tmp_path


def _ran(place: Path) -> list[str]:
    log = place / "log"
    return log.read_text().split() if log.exists() else []


def test_steps_run_in_order_and_the_closing_words_name_the_result(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["recipe.toml"])

    assert status == 0
    assert _ran(place) == ["first", "second"]
    assert (place / "w/second/out").read_text() == "input firstsecond"
    assert capsys.readouterr().out == f"made {Path('w/second')}\n"


def test_a_second_run_does_nothing_twice(place: Path) -> None:
    main(["recipe.toml"])

    status = main(["recipe.toml"])

    assert status == 0
    assert _ran(place) == ["first", "second"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: (p / "input").write_text("other "), ["first", "second"]),
        (lambda p: (p / "w/second/out").write_text("spoiled"), ["second"]),
        (lambda p: (p / "w/second/out").unlink(), ["second"]),
        (lambda p: (p / "w/first/out").write_text("spoiled"), ["first"]),
    ],
    ids=["input", "result-spoiled", "result-gone", "early-result-spoiled"],
)
def test_a_change_repeats_exactly_the_steps_that_it_reaches(
    place: Path, change: Callable[[Path], object], expected: list[str]
) -> None:
    main(["recipe.toml"])
    (place / "log").unlink()
    change(place)

    status = main(["recipe.toml"])

    assert status == 0
    assert _ran(place) == expected


def test_a_step_can_be_asked_for_again(place: Path) -> None:
    main(["recipe.toml"])
    (place / "log").unlink()

    main(["recipe.toml", "--again", "second"])

    assert _ran(place) == ["second"]


def test_a_failing_step_gives_its_own_exit_code_and_is_not_remembered(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "input").unlink()

    status = main(["recipe.toml"])

    assert status == 1
    assert "step 'first' ended with exit status 1" in capsys.readouterr().err
    (place / "input").write_text("input ")
    assert main(["recipe.toml"]) == 0
    assert _ran(place) == ["first", "first", "second"]


def test_a_dry_run_runs_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["recipe.toml", "--dry-run", "--json"])

    assert status == 0
    assert [s["step"] for s in json.loads(capsys.readouterr().out)["plan"]] == ["first", "second"]
    assert not (place / "w").exists()


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(place: Path) -> None:
    (place / "step.py").write_text(_STEP + "import time; time.sleep(0.5)\n")
    command = [sys.executable, "-m", "pipeline", "run", "recipe.toml"]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    running = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (place / "w/.ferry/first.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()

    status = main(["recipe.toml"])

    assert status == 0
    assert _ran(place).count("first") == 1
    assert sha256_file(place / "w/second/out") == _expected_digest(place)


def _expected_digest(place: Path) -> str:
    expected = place / "expected"
    expected.write_text("input firstsecond")
    return sha256_file(expected)

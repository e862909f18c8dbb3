import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hub_tools.server.app import running_hub
from model_store.files import sha256_file
from model_store.manifest import Manifest, scan, write_manifest
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


_SLOW = """
name = "t"
work = "w"
[[step]]
name = "slow"
uses = "command"
[step.options]
run = ["{python}", "-c", "import os, time; open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid'); time.sleep(60)"]
output = "{work}/slow"
"""  # noqa: E501


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no death signal")
def test_a_step_dies_with_a_run_that_is_killed_outright(place: Path) -> None:
    (place / "slow.toml").write_text(_SLOW)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pipeline", "run", "slow.toml"]
    running = subprocess.Popen(command, env=environment)
    assert _soon((place / "pid").exists)

    running.kill()  # the run alone, not its whole process group
    running.wait()

    pid = int((place / "pid").read_text())
    assert _soon(lambda: not _is_alive(pid))


def _soon(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return happened()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


_CARD = """
name = "t"
work = "w"
[[step]]
name = "looks"
uses = "command"
[step.options]
run = ["{python}", "step.py", "looks", "-", "{work}/looks", "mine"]
output = "{work}/looks"
"""


def test_a_snapshot_named_by_its_path_is_read_again_when_it_changes(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine/config.json").write_text("{}")
    write_manifest(place / "mine", Manifest(scan(place / "mine")))
    (place / "recipe.toml").write_text(_CARD)
    main(["recipe.toml"])
    (place / "mine/config.json").write_text('{"other": 1}')
    write_manifest(place / "mine", Manifest(scan(place / "mine")))

    main(["recipe.toml"])
    main(["recipe.toml"])

    assert _ran(place) == ["looks", "looks"]


_DOWNLOAD = """
name = "t"
work = "w"
[[step]]
name = "got"
uses = "download"
[step.options]
name = "modelscope:qwen/tiny"
"""


def test_another_hub_is_asked_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "recipe.toml").write_text(_DOWNLOAD)
    monkeypatch.setenv("FERRY_HOME", str(place / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for hub in ("one", "two"):
        folder = place / hub / "qwen/tiny"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(hub))
        # the second run may not replace what the first one wrote, so it says where it asked
        with running_hub(place / hub) as served:
            monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.endpoint)
            main(["recipe.toml"])

    assert "already done" not in capsys.readouterr().err


def test_progress_is_asked_of_every_step_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "recipe.toml").write_text(_DOWNLOAD)
    (place / "hub/qwen/tiny").mkdir(parents=True)
    (place / "hub/qwen/tiny/config.json").write_text("{}")
    monkeypatch.setenv("FERRY_HOME", str(place / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with running_hub(place / "hub") as served:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.endpoint)

        status = main(["recipe.toml", "--progress", "json"])

    lines = capfd.readouterr().err.splitlines()
    assert status == 0
    assert len(lines) > 2
    assert all(isinstance(json.loads(line), dict) for line in lines)

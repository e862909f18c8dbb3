"""Commands: exit codes, one-line failures, results on stdout and nothing else there."""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys

import pytest

from model_store.command import ExitCode, emit, run_command
from model_store.errors import (
    DigestMismatchError,
    IncompleteEvidenceError,
    ToolkitError,
    UsageError,
)


def no_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def failing(error: BaseException) -> int:
    def run(_args: argparse.Namespace) -> int:
        raise error

    return run_command(no_arguments, run, [], about="About.")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 2),
        (IncompleteEvidenceError("x"), 3),
        (ToolkitError("x"), 4),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 70),
    ],
)
def test_every_failure_has_its_exit_code(error: BaseException, status: int) -> None:
    assert failing(error) == status


def test_an_expected_failure_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    status = failing(DigestMismatchError("model.safetensors", expected="a" * 64, actual="b" * 64))

    captured = capsys.readouterr()
    assert status == ExitCode.REFUSED
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "error: model.safetensors: sha256 is bbbbbbbbbbbb…, aaaaaaaaaaaa… was promised",
        f"hint: {DigestMismatchError.hint}",
    ]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOTDIR, errno.EROFS])
def test_what_the_file_system_refuses_is_no_bug_of_ours(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    status = failing(OSError(number, os.strerror(number), "some/where"))

    lines = capsys.readouterr().err.splitlines()
    assert status == ExitCode.REFUSED
    assert lines[0] == f"error: {os.strerror(number)}: some/where"
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")


def test_a_file_that_we_lost_is_our_bug(capsys: pytest.CaptureFixture[str]) -> None:
    status = failing(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))

    assert status == ExitCode.OUR_BUG
    assert "Traceback" in capsys.readouterr().err


def test_our_own_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    failing(ZeroDivisionError("oops"))

    assert "ZeroDivisionError: oops" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "expected"), [([], "fine\n"), (["--json"], '{"verdict": "é"}\n')])
def test_results_are_text_or_json(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    def run(args: argparse.Namespace) -> int:
        emit(args, {"verdict": "é"}, "fine")
        return 0

    assert run_command(no_arguments, run, argv, about=None) == 0
    assert capsys.readouterr().out == expected


def test_a_wrong_flag_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(no_arguments, lambda _args: 0, ["--jso"], about=None)

    assert caught.value.code == ExitCode.USAGE
    assert "--jso" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    program = (
        "import sys\n"
        "from model_store.command import emit, run_command\n"
        "def run(args):\n"
        "    emit(args, {}, 'x' * 10_000_000)\n"
        "    return 0\n"
        "sys.exit(run_command(lambda parser: None, run, [], about=None))\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()

    assert process.returncode == 0
    assert errors == b""


def test_the_command_module_starts_quickly() -> None:
    program = "import sys, model_store.command\nprint(sorted(sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    loaded = json.loads(done.stdout.replace("'", '"'))
    assert not {"torch", "numpy", "rich", "transformers"} & set(loaded)

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conversion import diff, to_original, to_safetensors, to_transformers
from conversion.options import parse_size
from model_store.errors import UsageError
from model_store.manifest import Manifest, scan, write_manifest
from tests.conversion import published

_ROOT = Path(__file__).resolve().parents[2]
Main = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FERRY_HOME", str(tmp_path / "home"))


def _run(main: Main, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main([*argv, "--quiet"])
    printed = capsys.readouterr()
    return status, printed.out.strip(), printed.err


def test_results_get_names_of_their_own_and_are_found_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published.make_snapshot(tmp_path / "source")

    status, native, _ = _run(to_transformers.main, capsys, str(source))

    assert status == 0
    assert Path(native).is_relative_to(tmp_path / "home")
    assert "qwen/Qwen-VL-Chat-Native" in native
    status, back, _ = _run(to_original.main, capsys, "local:qwen/Qwen-VL-Chat-Native")
    assert status == 0
    assert "qwen/Qwen-VL-Chat-Original" in back
    assert _run(diff.main, capsys, str(source), back)[0] == 0
    status, safe, _ = _run(to_safetensors.main, capsys, str(source), "--into", "local:me/safe")
    assert (status, "me/safe" in safe) == (0, True)
    assert _run(diff.main, capsys, safe, native)[0] == 0


def test_a_finished_conversion_prints_its_folder_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = published.make_snapshot(tmp_path / "source"), tmp_path / "native"
    assert to_transformers.main([str(source), "--into", str(target)]) == 0
    capsys.readouterr()

    assert to_transformers.main([str(source), "--into", str(target)]) == 0

    printed = capsys.readouterr()
    assert printed.out.strip() == str(target)
    assert "already done" in printed.err


def test_json_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = published.make_snapshot(tmp_path / "source"), tmp_path / "native"

    status, out, _ = _run(
        to_transformers.main, capsys, str(source), "--into", str(target), "--json"
    )

    result = json.loads(out)
    assert status == 0
    assert (result["path"], result["tensors"], result["fresh"]) == (str(target), 81, True)


def test_bad_input_is_one_line_a_hint_and_exit_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published.make_snapshot(tmp_path / "source")
    (source / "pytorch_model-00001-of-00002.bin").unlink()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    whole = published.make_snapshot(tmp_path / "whole")

    for snapshot, target in (
        (source, tmp_path / "target"),
        (taken, tmp_path / "t"),
        (whole, taken),
    ):
        status, out, err = _run(to_transformers.main, capsys, str(snapshot), "--into", str(target))
        assert (status, out) == (4, "")
        assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "taken", "whole"}


def test_a_snapshot_from_nowhere_gets_its_result_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published.make_snapshot(tmp_path / "source")
    write_manifest(source, Manifest(files=scan(source)))

    status, out, _ = _run(to_transformers.main, capsys, str(source))

    assert status == 0
    assert out.strip() == str(tmp_path / "source-Native")


@pytest.mark.parametrize(
    "size", ["5", "0GB", "-1GB", "5 GB", "1e9B", "99999999999999GB", "5TB", ""]
)
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UsageError):
        parse_size(size)


def test_sizes_are_decimal() -> None:
    assert [parse_size(size) for size in ("5GB", "100KB", "7B")] == [5 * 10**9, 10**5, 7]


def test_a_conversion_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    source = published.make_snapshot(tmp_path / "source")
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers', 'safetensors'):\n"
        "            raise ImportError(name + ' was imported')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from conversion import diff, to_original, to_transformers\n"
        "source, native, back = sys.argv[1:]\n"
        "assert to_transformers.main([source, '--into', native]) == 0\n"
        "assert to_original.main([native, '--into', back]) == 0\n"
        "assert diff.main([source, back]) == 0\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, source, tmp_path / "native", tmp_path / "back"],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr

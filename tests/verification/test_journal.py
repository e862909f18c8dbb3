"""The journal: whole files or none, and a killed comparison that goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.verification import snapshots
from verification.journal import Stage

_ROOT = Path(__file__).parents[2]


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "reference", {"subject": "a"})
    hidden = np.arange(6, dtype=np.float32).reshape(2, 3)

    stage.write("batch-00000", [{"text": "红色", "box": None}], {"hidden-0": hidden})

    entry = stage.read("batch-00000")
    assert entry is not None
    assert entry.facts == [{"text": "红色", "box": None}]
    assert (entry.arrays["hidden-0"] == hidden).all()


def test_another_key_is_another_place(tmp_path: Path) -> None:
    Stage(tmp_path, "reference", {"subject": "a"}).write("batch-00000", [], {})

    assert not Stage(tmp_path, "reference", {"subject": "b"}).has("batch-00000")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and no more", None])
def test_a_damaged_file_counts_as_not_there(tmp_path: Path, damage: bytes | None) -> None:
    stage = Stage(tmp_path, "reference", {})
    stage.write("batch-00000", [1, 2, 3], {"a": np.ones(1000)})
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)

    assert stage.read("batch-00000") is None


def _start(pair: tuple[Path, Path], folder: Path) -> subprocess.Popen[bytes]:
    argv = [*map(str, pair), "--claim", "quantized", "--profile", "demo", "--samples", "16"]
    argv += ["--batch-size", "1", "--report", str(folder / "report"), "--quiet"]
    command = [sys.executable, "-m", "verification.compare", *argv]
    return subprocess.Popen(command, cwd=_ROOT, start_new_session=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_in_the_same_record(tmp_path: Path) -> None:
    native = snapshots.to_native(snapshots.original_weights())
    reference = snapshots.write_native(tmp_path / "tiny", native)
    int4 = snapshots.write_native(tmp_path / "int4", snapshots.rtn_int4(native), quantized=True)
    record = int4 / "records" / "parity-quantized.json"
    whole = _start((reference, int4), tmp_path / "whole")
    assert whole.wait() in (0, 1)
    expected = record.read_bytes()
    record.unlink()

    killed = _start((reference, int4), tmp_path / "again")
    work = tmp_path / "again" / ".report.work"
    deadline = time.monotonic() + 300
    while len(list(work.rglob("batch-*.npz"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {file: file.stat().st_mtime_ns for file in work.rglob("batch-*.npz")}
    again = _start((reference, int4), tmp_path / "again")

    assert len(done) >= 5
    assert again.wait() == whole.returncode
    assert record.read_bytes() == expected
    assert not work.exists()


@pytest.mark.slow
def test_two_processes_share_the_work_and_agree_with_one(tmp_path: Path) -> None:
    native = snapshots.to_native(snapshots.original_weights())
    reference = snapshots.write_native(tmp_path / "tiny", native)
    int4 = snapshots.write_native(tmp_path / "int4", snapshots.rtn_int4(native), quantized=True)
    record = int4 / "records" / "parity-quantized.json"
    argv = [str(reference), str(int4), "--claim", "quantized", "--profile", "demo", "--quiet"]
    argv += ["--samples", "16", "--batch-size", "4"]
    alone = [sys.executable, "-m", "verification.compare", *argv, "--report", str(tmp_path / "a")]
    first = subprocess.run(alone, cwd=_ROOT, check=False, capture_output=True, text=True)
    expected = record.read_bytes()
    record.unlink()
    work = tmp_path / "work"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["-m", "verification.compare", *argv]
    launch += ["--report", str(tmp_path / "b"), "--work", str(work)]

    second = subprocess.run(
        launch, cwd=_ROOT, check=False, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert record.read_bytes() == expected
    # the verdict is said once, by the first process
    assert second.stdout.count(str(tmp_path / "b" / "report.html")) == 1
    assert len(list(work.rglob("batch-*.npz"))) > 8

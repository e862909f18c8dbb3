"""A run that was killed goes on from the weight files that it had finished, to the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conversion.casting import cast_snapshot
from conversion.options import CastOptions, ReshardOptions
from conversion.steps import reshard
from model_store.manifest import Manifest, read_manifest, scan, verify_snapshot, write_manifest

_ROOT = Path(__file__).resolve().parents[2]


def _source(folder: Path, *, tensors: int = 40, size: int = 250_000) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    state = {f"layers.{n}.w": torch.randn(size, generator=generator) for n in range(tensors)}
    state["layers.0.w"][:7] = 1e6  # too large for float16
    save_file(state, folder / "model.safetensors")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


def _start(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "conversion.cast", str(source), "--into", str(target),
        "--to", "float16", "--max-shard-size", "1MB", "--json", "--quiet",
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def _kill_when(process: subprocess.Popen[str], building: Path, files: int) -> bool:
    """Kill -9 once so many weight files have their name; False when it ended before."""
    while process.poll() is None:
        if len(list(building.glob("*.safetensors"))) >= files:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.0005)
    process.communicate()
    return False


@pytest.mark.parametrize("seed", [1, 2])
def test_after_kill_9_finished_shards_are_used_again(tmp_path: Path, seed: int) -> None:
    source, rng = _source(tmp_path / "s"), random.Random(seed)
    options = CastOptions("s", to="float16", max_shard_size="1MB")
    expected = cast_snapshot(source, tmp_path / "whole", options)
    target, building = tmp_path / "t", tmp_path / ".t.partial"

    kills = 0
    for files in sorted(rng.sample(range(1, 17), 3)):
        kills += _kill_when(_start(source, target), building, files)
        assert not target.exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in building.glob("*.safetensors")}
    last = _start(source, target)
    out, _ = last.communicate(timeout=120)

    result = json.loads(out)
    assert (last.returncode, kills) == (0, 3)
    assert read_manifest(target) == expected.manifest
    verify_snapshot(target)
    assert (target / "CHANGES.md").read_bytes() == (expected.folder / "CHANGES.md").read_bytes()
    assert len(result["reused"]) >= len(stamps) - 1 > 0  # one may have its name and no line yet
    for name in result["reused"]:
        assert (target / name).stat().st_mtime_ns == stamps[name]  # not written again
    assert result["overflowed"] == {"layers.0.w": 7}
    assert {path.name for path in target.parent.iterdir()} == {"s", "t", "whole"}


def _interrupted(source: Path, target: Path, files: int = 4) -> Path:
    building = target.with_name(f".{target.name}.partial")
    assert _kill_when(_start(source, target), building, files)
    return building


def _go_on(source: Path, target: Path, size: str = "1MB") -> tuple[str, ...]:
    options = CastOptions("s", to="float16", max_shard_size=size)
    return cast_snapshot(source, target, options).reused


def test_a_shard_that_was_damaged_in_the_meantime_is_written_again(tmp_path: Path) -> None:
    source, target = _source(tmp_path / "s"), tmp_path / "t"
    building = _interrupted(source, target)
    damaged = building / "model-00001-of-00020.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with (building / "journal.partial").open("ab") as journal:
        journal.write(b'{"path": "../../evil", "size": 1, "sha')  # a torn line

    reused = _go_on(source, target)

    assert damaged.name not in reused
    assert len(reused) >= 2
    verify_snapshot(target)


def test_other_options_or_another_step_start_anew(tmp_path: Path) -> None:
    source, target = _source(tmp_path / "s"), tmp_path / "t"

    _interrupted(source, target)
    assert _go_on(source, target, size="2MB") == ()
    _interrupted(source, tmp_path / "u")
    assert reshard(source, tmp_path / "u", ReshardOptions("s")).reused == ()

    verify_snapshot(target)
    assert {path.name for path in tmp_path.iterdir()} == {"s", "t", "u"}


def test_a_dry_run_says_that_the_work_will_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conversion import cast

    source, target = _source(tmp_path / "s"), tmp_path / "t"
    building = _interrupted(source, target)
    before = sorted(path.name for path in building.iterdir())
    argv = [str(source), "--into", str(target), "--to", "float16", "--max-shard-size", "1MB"]

    assert cast.main([*argv, "--dry-run", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["resumes"] is True
    assert sorted(path.name for path in building.iterdir()) == before

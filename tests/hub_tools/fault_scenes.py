"""Rows of the fault table that need more than a fault of the network."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hub_tools.server.commits import Entry
from hub_tools.server.repositories import Changes
from tests.hub_tools import faults
from tests.hub_tools.fault_stage import (
    REPO,
    Report,
    Run,
    Stage,
    resize_disk,
    small_disk,
)

_WEIGHTS = "model.safetensors"
_RATE = 12_000_000  # bytes per second and connection, where a download must last a while


def once(stage: Stage) -> Report:
    """Download; after a failure the fault ends, and the download runs again."""
    return stage.healed(stage.run())


def symlinked_folder(stage: Stage) -> Report:
    stage.target.mkdir(parents=True)
    (stage.target / "assets").symlink_to(stage.outside, target_is_directory=True)
    return stage.report(stage.run())


def symlinked_later(stage: Stage) -> Report:
    stage.run()
    shutil.rmtree(stage.target / "assets")
    (stage.target / "assets").symlink_to(stage.outside, target_is_directory=True)
    return stage.report(stage.run())


def wrong_file_there(stage: Stage) -> Report:
    stage.target.mkdir(parents=True)
    (stage.target / _WEIGHTS).write_bytes(bytes(len(stage.files[_WEIGHTS])))
    before = sorted(stage.target.rglob("*"))
    run = stage.run()
    if run.ended == "error" and sorted(stage.target.rglob("*")) == before:
        # refused, and what was there is untouched: nothing wrong was taken for ours
        return Report("error", run.seconds, run.error, run.message)
    return stage.report(run)


def wrong_file_later(stage: Stage) -> Report:
    stage.run()
    flip(stage.target / _WEIGHTS)
    return stage.report(stage.run())


def bit_rot(stage: Stage) -> Report:
    first = stage.run(to_store=True)
    assert first.folder is not None, first.message
    flip(first.folder / _WEIGHTS)
    return stage.report(stage.run(to_store=True))


def flip(path: Path) -> None:
    """Flip a bit in place; the file's time of change stays what it was."""
    path = path.resolve()
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(before.st_size // 2)
        file.write(bytes([byte ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def killed_once(stage: Stage) -> Report:
    stage.player.always[_WEIGHTS] = faults.limited(_RATE)
    process = stage.start()
    _wait_for_bytes(stage, len(stage.files[_WEIGHTS]) // 2, process)
    _kill(process)
    stage.player.heal()
    return stage.report(stage.run())


def killed_often(stage: Stage) -> Report:
    stage.player.always[_WEIGHTS] = faults.limited(_RATE)
    chance = random.Random(50)
    for _ in range(50 if stage.client.is_ours else 12):
        process = stage.start()
        # from before the first request to after the last rename
        wait_until = time.monotonic() + chance.uniform(0.1, 1.6)
        while time.monotonic() < wait_until and process.poll() is None:
            time.sleep(0.01)
        _kill(process)
        between = stage.report(Run("error", 0.0))
        if between.outcome != "error":
            return replace(between, message="after a kill")
        if stage.target.is_dir() and chance.random() < 0.5:
            shutil.rmtree(stage.target)  # a finished copy is no longer at risk
    stage.player.heal()
    return stage.report(stage.run())


def two_processes(stage: Stage) -> Report:
    stage.player.always[_WEIGHTS] = faults.limited(_RATE)
    began = time.monotonic()
    processes = [stage.start(to_store=True) for _ in range(2)]
    reports = [stage.report(stage.ended(process, began)) for process in processes]
    return max(reports, key=lambda report: (report.outcome != "good", report.seconds))


def small_from_start(stage: Stage) -> Report:
    with small_disk(stage.work, 12):
        run = stage.run()
        first = stage.report(run)
        if first.outcome == "good":
            return first
        resize_disk(stage.work, 256)
        return stage.healed(run)


def filling_up(stage: Stage) -> Report:
    stage.player.always[_WEIGHTS] = faults.limited(_RATE // 4)
    with small_disk(stage.work, 128):
        began = time.monotonic()
        process = stage.start()
        _wait_for_bytes(stage, 4_000_000, process)
        ballast = stage.work / ".ballast"
        _fill(ballast)
        run = stage.ended(process, began)
        first = stage.report(run)
        ballast.unlink()
        return first if first.outcome == "good" else stage.healed(run)


def _fill(ballast: Path) -> None:
    """Take all the room there is, the last of it in small pieces."""
    with ballast.open("wb") as out, contextlib.suppress(OSError):
        end = max(1, shutil.disk_usage(ballast.parent).free - 6_000_000)
        os.posix_fallocate(out.fileno(), 0, end)
        while True:
            os.posix_fallocate(out.fileno(), end, 1 << 16)
            end += 1 << 16


def offline(stage: Stage) -> Report:
    return _without_hub(stage, offline=True)


def down(stage: Stage) -> Report:
    return _without_hub(stage, offline=False)


def _without_hub(stage: Stage, *, offline: bool) -> Report:
    stage.run(to_store=True)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
        stage.environment = {"HF_ENDPOINT": gone, "MODELSCOPE_ENDPOINT": gone}
        run = stage.run(to_store=True, offline=offline)
    stage.environment = {}
    if run.ended == "error":
        return stage.healed(run, to_store=True)
    return stage.report(run)


def many_files(stage: Stage) -> Report:
    stage.direct = True
    return stage.report(stage.run())


def long_listing(stage: Stage) -> Report:
    stage.direct, stage.include = True, ("part/0421*.txt",)
    data = b"the same bytes\n"
    digests = stage.hub.hub.blobs.add(data)
    paths = [f"part/{i:06d}.txt" for i in range(100_000)]
    entries = [
        Entry(path, digests.size, digests.sha256, digests.git_oid, lfs=False) for path in paths
    ]
    repositories = stage.hub.hub.repositories
    repo = repositories.find(REPO)
    assert repo is not None
    repositories.change(repo, "main", Changes(put=entries), message="many", parent=None)
    wanted: Mapping[str, bytes] = {p: data for p in paths if p.startswith("part/0421")}
    stage.files = wanted
    return stage.report(stage.run())


def _wait_for_bytes(stage: Stage, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + stage.limit
    while stage.player.sent < count and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()

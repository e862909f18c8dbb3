"""Run a command and watch it from outside: wall and CPU seconds, peak resident and private memory.

What the kernel keeps of files (the page cache) is not a process's memory, and is not counted.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One process and its children, measured from outside."""

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    peak_anon_mb: float
    load: float  # the machine's, just before


def watched(command: Sequence[str], *, cwd: Path) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: it failed.
    """
    load = round(os.getloadavg()[0], 1)
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd)
    rss = anon = 0.0
    while process.poll() is None:
        now = [_memory(pid) for pid in _family(process.pid)]
        rss, anon = max([rss, *(n[0] for n in now)]), max([anon, *(n[1] for n in now)])
        time.sleep(0.02)
    wall, after = time.perf_counter() - started, os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Run(wall, cpu, rss, anon, load)


def machine(*packages: str) -> dict[str, Any]:
    """What a result says of the machine and the versions that it was measured with."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in packages},
    }


def _family(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(int(child) for child in text.split())]


def _memory(pid: int) -> tuple[float, float]:
    """Peak resident and present anonymous memory, in MB (1e6)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
    return int(found.get("VmHWM", 0)) * 1.024e-3, int(found.get("RssAnon", 0)) * 1.024e-3

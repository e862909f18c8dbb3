"""Compare downloads: ours, huggingface_hub's and modelscope's, and `cp` with `sha256sum`.

One local hub serves everybody in the same run, by turns; each client is a process of its own, the
official ones in environments of their own, which are made in build/benchmarks at the first run.

Examples:
  python benchmarks/download.py
  python benchmarks/download.py --scale 0.05 --repetitions 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ROOT = Path(__file__).parents[1]
_PLACE = _ROOT / "build" / "benchmarks"
_RESULTS = _ROOT / "benchmarks" / "results" / "download.json"
_MB = 1 << 20
_CDN = ("--delay", "0.05", "--rate", "20e6")
_SOURCE_RATE = 40e6  # bytes per second of each of two sources
_PINS = {"huggingface_hub": "2.4.0", "modelscope": "1.40.2"}

_OURS = """
import sys
from pathlib import Path
from hub_tools.snapshots import download_snapshot
download_snapshot(f"{sys.argv[1]}:{sys.argv[2]}", target=Path(sys.argv[3]))
"""
_OFFICIAL = """
import sys
from {module} import snapshot_download
snapshot_download(sys.argv[2], local_dir=sys.argv[3])
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """What is downloaded."""

    name: str
    large: int  # files …
    size: int  # … of this many bytes
    small: int = 200

    @property
    def bytes(self) -> int:
        return self.large * self.size


@dataclass(frozen=True, slots=True)
class Cost:
    """What one download took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    rss: float  # MiB, the peak


@dataclass(frozen=True, slots=True)
class Peer:
    """A client: its name, the dialect it speaks, its interpreter and program."""

    name: str
    dialect: str
    python: str
    program: str


def main() -> int:
    """Measure, print a table, write the results."""
    args = _parser().parse_args()
    repositories = [
        Repository("eight", 8, int(256 * _MB * args.scale)),
        Repository("one", 1, int(512 * _MB * args.scale)),
    ]
    root = _PLACE / f"hub-{args.scale:g}"
    for repository in repositories:
        make_repository(root, repository)
    peers = [
        Peer("modelferry", "huggingface", sys.executable, _OURS),
        *(
            Peer(name, name.split("_")[0], environment(name, pin), _OFFICIAL.format(module=name))
            for name, pin in _PINS.items()
        ),
    ]
    load = os.getloadavg()[0]
    began = time.monotonic()
    with ExitStack() as stack:
        hub = stack.enter_context(serving(root))
        cdn = stack.enter_context(proxy(hub, *_CDN))
        cases = {}
        for network, endpoint in (("loopback", hub), ("cdn", cdn)):
            for repository in repositories:
                found = measure(repository, endpoint, peers, repetitions=args.repetitions)
                if network == "loopback":
                    found["cp + sha256sum"] = [
                        copied(root, repository) for _ in range(args.repetitions)
                    ]
                cases[f"{repository.name}, {network}"] = summary(found)
                print(table(f"{repository.name}, {network}", found), flush=True)
        sources = two_sources(hub, repositories[1], repetitions=args.repetitions)
    print(f"two sources of equal speed: {sources.get('ratio', 'not measured')} times one")
    results = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "load_before": round(load, 2)},
        "versions": {"modelferry": _own_version(), **_PINS, "python": sys.version.split()[0]},
        "scale": args.scale,
        "repetitions": args.repetitions,
        "seconds": round(time.monotonic() - began),
        "cases": cases,
        "two_sources": sources,
    }
    if args.write:
        _RESULTS.parent.mkdir(parents=True, exist_ok=True)
        _RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the files (default: 1)")
    parser.add_argument("--repetitions", type=int, default=2, help="of everything (default: 2)")
    parser.add_argument(
        "--no-write", dest="write", action="store_false", help="leave the results file alone"
    )
    return parser


def make_repository(root: Path, repository: Repository) -> None:
    """Write random files once; the disk's cache then has them for every client."""
    folder = root / "bench" / repository.name
    if folder.is_dir():
        return
    building = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for number in range(repository.large):
        with (building / f"model-{number:05d}.safetensors").open("wb") as out:
            for start in range(0, repository.size, 16 * _MB):
                out.write(os.urandom(min(16 * _MB, repository.size - start)))
    for number in range(repository.small):
        path = building / "tokens" / f"{number:03d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"number": number, "text": "x" * (number * 40)}))
    building.rename(folder)


def environment(name: str, pin: str) -> str:
    """Make a peer's own environment, unless it is there; returns its interpreter."""
    folder = _PLACE / f"venv-{name}-{pin}"
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        print(f"installing {name} {pin}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        wanted = f"{name}=={pin}"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", wanted], check=True)
        (folder / ".ready").touch()
    return str(python)


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Run the local hub in a process of its own."""
    command = [sys.executable, "-m", "hub_tools.serve", str(root), "--quiet", "--read-only"]
    with _printing_its_address(command) as endpoint:
        yield endpoint


@contextmanager
def proxy(endpoint: str, *shape: str) -> Iterator[str]:
    """Put a slow network before a hub."""
    program = str(_ROOT / "benchmarks" / "shaping_proxy.py")
    with _printing_its_address([sys.executable, program, urlsplit(endpoint).netloc, *shape]) as at:
        yield at


@contextmanager
def _printing_its_address(command: Sequence[str]) -> Iterator[str]:
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = process.stdout.readline().strip() if process.stdout else ""
        if not endpoint:
            raise SystemExit(f"{command[1:3]} did not start")
        yield endpoint
    finally:
        process.kill()
        process.wait()


def measure(
    repository: Repository, endpoint: str, peers: Sequence[Peer], *, repetitions: int
) -> dict[str, list[Cost]]:
    """Let every peer download by turns."""
    found: dict[str, list[Cost]] = {peer.name: [] for peer in peers}
    for _ in range(repetitions):
        for peer in peers:
            found[peer.name].append(downloaded(peer, repository, endpoint))
    return found


def downloaded(peer: Peer, repository: Repository, endpoint: str, **variables: str) -> Cost:
    """One download to an empty place, checked by size."""
    work = _PLACE / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "home").mkdir(parents=True)
    target = work / "target"
    command = [
        peer.python,
        "-c",
        peer.program,
        peer.dialect,
        f"bench/{repository.name}",
        str(target),
    ]
    cost = timed(command, _variables(work / "home", endpoint) | variables)
    arrived = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    if arrived != repository.bytes:
        raise SystemExit(f"{peer.name} brought {arrived} of {repository.bytes} bytes")
    shutil.rmtree(work)
    return cost


def _variables(home: Path, endpoint: str) -> dict[str, str]:
    known = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    return known | {
        "HOME": str(home),
        "FERRY_HOME": str(home / "ferry"),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "MODELSCOPE_ENDPOINT": endpoint,
        "MODELSCOPE_CACHE": str(home / "ms"),
        "MODELSCOPE_HOME": str(home / "ms-home"),
        "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
    }


def timed(command: Sequence[str], variables: dict[str, str] | None = None) -> Cost:
    """Run a command; wall, CPU and memory of that process and its children."""
    with (_PLACE / "last.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
            cwd=_ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
            check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{Path(command[0]).name} failed; see {_PLACE / 'last.log'}")
    wall, cpu, kibibytes = json.loads(done.stdout)
    return Cost(wall, cpu, kibibytes / 1024)


# a process inherits the peak memory of the one that started it, so that one has to be small
_LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
child = os.posix_spawnp(
    sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)]
)
_, status, usage = os.wait4(child, 0)
print(json.dumps([time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def copied(root: Path, repository: Repository) -> Cost:
    """The least that anybody can do here: copy the files, and hash them."""
    work = _PLACE / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    source = str(root / "bench" / repository.name)
    script = 'cp -r "$1" "$2/copy" && find "$2/copy" -type f -exec sha256sum {} + > "$2/sums"'
    cost = timed(["sh", "-c", script, "sh", source, str(work)])
    shutil.rmtree(work)
    return cost


def two_sources(hub: str, repository: Repository, *, repetitions: int) -> dict[str, Any]:
    """One source against two of the same speed, each slow in all its connections together."""
    ours = Peer("modelferry", "huggingface", sys.executable, _TWO)
    costs: dict[str, list[Cost]] = {"one": [], "two": []}
    rate = ("--total-rate", str(_SOURCE_RATE))
    with proxy(hub, *rate) as first, proxy(hub, *rate) as second:
        for _ in range(repetitions):
            for name, also in (("one", ""), ("two", f"modelscope:bench/{repository.name}")):
                try:
                    cost = downloaded(
                        ours, repository, first, MODELSCOPE_ENDPOINT=second, ALSO=also
                    )
                except SystemExit as error:
                    return {"not_measured": str(error)[:40]}
                costs[name].append(cost)
    one, two = (median(costs[name], "wall") for name in ("one", "two"))
    return {"one": round(one, 2), "two": round(two, 2), "ratio": round(one / two, 2)}


_TWO = """
import os, sys
from pathlib import Path
from hub_tools.snapshots import download_snapshot
also = {"also": (os.environ["ALSO"],)} if os.environ["ALSO"] else {}
download_snapshot(f"{sys.argv[1]}:{sys.argv[2]}", target=Path(sys.argv[3]), **also)
"""


def median(costs: Sequence[Cost], what: str) -> float:
    """The median of one cost."""
    return float(statistics.median(getattr(cost, what) for cost in costs))


def summary(found: dict[str, list[Cost]]) -> dict[str, Any]:
    """Medians, every wall time, and each cost as a multiple of ours."""
    ours = {what: median(found["modelferry"], what) for what in ("wall", "cpu", "rss")}
    return {
        name: {
            "wall": round(median(costs, "wall"), 2),
            "walls": [round(cost.wall, 2) for cost in costs],
            "cpu": round(median(costs, "cpu"), 2),
            "cpus": [round(cost.cpu, 2) for cost in costs],
            "rss_mib": round(median(costs, "rss")),
            "times_ours": round(median(costs, "wall") / ours["wall"], 2),
            "cpu_times_ours": round(median(costs, "cpu") / ours["cpu"], 2),
            "rss_times_ours": round(median(costs, "rss") / ours["rss"], 2),
        }
        for name, costs in found.items()
    }


def table(title: str, found: dict[str, list[Cost]]) -> str:
    """One case for people."""
    heads = [f"{head:>8} {'× ours':>7}" for head in ("wall s", "CPU s")]
    lines = [f"{title:20} {' '.join(heads)} {'MiB':>6} {'× ours':>7}"]
    for name, row in summary(found).items():
        lines.append(
            f"  {name:18} {row['wall']:8.2f} {row['times_ours']:7.2f} {row['cpu']:8.2f}"
            f" {row['cpu_times_ours']:7.2f} {row['rss_mib']:6} {row['rss_times_ours']:7.2f}"
        )
    return "\n".join(lines)


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _own_version() -> str:
    from model_store.manifest import tool_version

    return tool_version().partition(" ")[2]


if __name__ == "__main__":
    sys.exit(main())

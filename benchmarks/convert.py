"""Measure conversions against `cp` and against what others use, on one sharded .bin checkpoint.

Examples:
    python benchmarks/convert.py --size 400MB --runs 1
    python benchmarks/convert.py --size 4GB --write

Every runner is a process of its own: wall and CPU seconds (children included), peak resident and
peak anonymous memory, sampled from /proc. The peers run in the interpreter that runs this script
and need its torch, safetensors and transformers. Warm means that the source is in the page cache,
cold that it was dropped (POSIX_FADV_DONTNEED). "quiet" is the least of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from convert_runners import MAKERS, RUNNERS  # noqa: E402  found by the path above
from watching import Run, machine, watched  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "convert.json"


@dataclass(frozen=True, slots=True)
class Row:
    """A runner's measurements in one cache state."""

    work: str
    cache: str
    quiet_wall_s: float
    median_wall_s: float
    median_cpu_s: float
    least_cpu_s: float
    peak_rss_mb: float
    peak_anon_mb: float
    load: tuple[float, float]
    runs: int


def main(argv: Sequence[str] | None = None) -> int:
    """Make the source, run every runner, print and perhaps keep the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="4GB", help="bytes of weights (default: 4GB)")
    parser.add_argument("--runs", type=int, default=3, help="warm runs of each (default: 3)")
    parser.add_argument("--only", nargs="*", help="names of runners")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks" / "convert")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--run", nargs=3, metavar=("NAME", "SOURCE", "TARGET"), help="(internal)")
    args = parser.parse_args(argv)
    if args.run:
        (RUNNERS | MAKERS)[args.run[0]](Path(args.run[1]), Path(args.run[2]))
        return 0
    source = args.work / f"source-{args.size}"
    for maker, suffix in (
        ("make_source", ""),
        ("make_float32", "-float32"),
        ("make_safe", "-safe"),
    ):
        made = source.with_name(source.name + suffix)
        if not made.is_dir():
            building = made.with_name(made.name + ".partial")
            shutil.rmtree(building, ignore_errors=True)
            _self(maker, source if maker == "make_safe" else Path(args.size), building)
            building.rename(made)
    names = args.only or list(RUNNERS)
    rows = [row for name in names for row in _measured(name, source, args.work, args.runs)]
    _print(rows)
    if args.write:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(_report(args, rows), indent=1) + "\n", encoding="utf-8")
    return 0


def _measured(name: str, source: Path, work: Path, runs: int) -> list[Row]:
    warm: list[Run] = []
    cold: list[Run] = []
    for number in range(runs + 1):
        _cache(_read_by(name, source), warm=number < runs)
        shutil.rmtree(work / "target", ignore_errors=True)
        run = watched(_command(name, source, work / "target"), cwd=ROOT)
        shutil.rmtree(work / "target", ignore_errors=True)
        (warm if number < runs else cold).append(run)
    return [_row(name, "warm", warm), _row(name, "cold", cold)]


def _row(name: str, cache: str, runs: list[Run]) -> Row:
    return Row(
        work=name,
        cache=cache,
        quiet_wall_s=round(min(run.wall_s for run in runs), 2),
        median_wall_s=round(statistics.median(run.wall_s for run in runs), 2),
        median_cpu_s=round(statistics.median(run.cpu_s for run in runs), 2),
        least_cpu_s=round(min(run.cpu_s for run in runs), 2),
        peak_rss_mb=round(max(run.peak_rss_mb for run in runs)),
        peak_anon_mb=round(max(run.peak_anon_mb for run in runs)),
        load=(min(run.load for run in runs), max(run.load for run in runs)),
        runs=len(runs),
    )


def _cache(source: Path, *, warm: bool) -> None:
    os.sync()
    for path in source.iterdir():
        with path.open("rb", buffering=0) as file:
            if warm:
                while file.read(1 << 22):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_by(name: str, source: Path) -> Path:
    suffix = "-safe" if "known" in name else "-float32" if "cast" in name else ""
    return source.with_name(source.name + suffix)


def _command(name: str, source: Path, target: Path) -> list[str]:
    if name == "cp":
        return ["cp", "-r", str(source), str(target)]
    return [sys.executable, str(Path(__file__)), "--run", name, str(source), str(target)]


def _self(name: str, source: Path, target: Path) -> None:
    subprocess.run(_command(name, source, target), check=True, cwd=ROOT)


def _print(rows: list[Row]) -> None:
    print(f"{'work':26} cache  quiet wall  CPU (least)    RSS MB  anon MB  load")
    for row in rows:
        print(
            f"{row.work:26} {row.cache:5} {row.quiet_wall_s:10.2f} {row.median_cpu_s:6.2f} "
            f"({row.least_cpu_s:5.2f}) {row.peak_rss_mb:8.0f} {row.peak_anon_mb:8.0f}  {row.load}"
        )


def _report(args: argparse.Namespace, rows: list[Row]) -> dict[str, object]:
    return {
        "command": f"python benchmarks/convert.py --size {args.size} --runs {args.runs} --write",
        **machine("torch", "safetensors", "transformers", "numpy"),
        "what": {name: str(runner.__doc__) for name, runner in RUNNERS.items()},
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())

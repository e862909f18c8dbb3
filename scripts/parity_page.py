"""The measured table within docs/parity.md, from what its benchmark wrote."""

from __future__ import annotations

import json
from pathlib import Path

_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "parity.md"
RESULTS = _ROOT / "benchmarks" / "results" / "parity.json"


def render() -> str:
    """The page with its table made anew; what is written around it stays."""
    opening = f"<!-- benchmarks/results/{RESULTS.name} -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(opening)
    _, _, after = rest.partition("<!-- end -->")
    return f"{before}{opening}{parity_table()}<!-- end -->{after}"


def parity_table() -> str:
    """The parity benchmark's table; a sentence where there are no results."""
    if not RESULTS.is_file():
        return "Not measured yet: `python benchmarks/parity.py --write`.\n"
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{settings['samples']} probes of the {settings['model']}, {machine['processor']}, "
        f"{machine['threads']} thread, torch {machine['torch']}, load before the run "
        f"{machine['load_before']} (`benchmarks/parity.py`, {machine['date']}).",
        "",
        "| batch | samples/s | × one at a time | × one at a time, CPU time |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['batch']} | {row['samples_per_s']:.1f} | {row['times_alone']:.2f} | "
        f"{row['times_alone_cpu']:.2f} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"

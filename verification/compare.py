"""Hold a converted or quantized snapshot against its reference, and say whether the claim holds.

The verdict comes from tensors, tokenizers, logits, greedy answers and boxes, measured on seeded
probes. It goes into the candidate as records/parity-CLAIM.json; a report folder gets parity.json,
summary.md and report.html.

Examples:
    python -m verification.compare Qwen-VL-Chat Qwen-VL-Chat-Native --claim converted
    python -m verification.compare A A-Int4 --claim quantized --report report
    python -m verification.compare tiny tiny-Int4 --claim quantized --profile demo

Exit status 0: pass, with warnings or without; 1: fail; 3: no verdict, evidence is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.options import add_options, from_args
from verification.options import CompareOptions

_EXITS = {
    "pass": ExitCode.DONE,
    "warn": ExitCode.DONE,
    "fail": ExitCode.GATE_FAILED,
    "incomplete": ExitCode.INCOMPLETE,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, CompareOptions)


def run(args: argparse.Namespace) -> int:
    """Compare, write the record and the report, and print the verdict."""
    from hub_tools.snapshots import resolve_snapshot
    from model_store.records import write_record
    from verification.comparing import compare  # torch loads here, not for --help
    from verification.report_folder import check_report_target, write_report

    options = from_args(CompareOptions, args)
    target = options.report or Path(f"parity-report-{options.claim}")
    check_report_target(target)
    progress = progress_for(args)
    reference = resolve_snapshot(options.reference, progress=progress)
    candidate = resolve_snapshot(options.candidate, progress=progress)
    report = compare(reference, candidate, options, progress=progress)
    record = write_record(candidate, report.record)
    write_report(target, report)
    places = {"path": str(candidate), "record": str(record), "report": str(target)}
    result = report.summary_json() | places
    text = f"{report.verdict}: {report.summary.en}\n{target / 'report.html'}"
    emit(args, result, text)
    return _EXITS[report.verdict]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

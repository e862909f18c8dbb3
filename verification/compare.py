"""Hold a converted or quantized snapshot against its reference, and say whether the claim holds.

The verdict comes from tensors, tokenizers, logits, greedy answers and boxes, measured on seeded
probes. It goes into the candidate as records/parity-CLAIM.json; a report folder gets parity.json,
junit.xml, summary.md and report.html. A killed run goes on where it was, when it is started again.

Examples:
    python -m verification.compare Qwen-VL-Chat Qwen-VL-Chat-Native --claim converted
    python -m verification.compare A A-Int4 --claim quantized --report report
    python -m verification.compare A A-Int4 --claim quantized --baseline parity-baseline.json
    python -m verification.compare A A-Int4 --claim quantized --only probe-012
    torchrun --nproc-per-node 8 -m verification.compare A A-Int4 --claim quantized --device cuda

Exit status 0: pass, with warnings or without; 1: fail; 3: no verdict, evidence is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.errors import ToolkitError
from model_store.options import add_options, from_args
from model_store.progress import NoProgress
from verification.options import CompareOptions

if TYPE_CHECKING:
    from verification.world import World

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
    from verification.world import join_world

    options = from_args(CompareOptions, args)
    world = join_world()
    try:
        return world.tell(_run(args, options, world))
    finally:
        world.leave()


def _run(args: argparse.Namespace, options: CompareOptions, world: World) -> int:
    from hub_tools.snapshots import resolve_snapshot
    from model_store.records import write_record
    from verification.comparing import compare  # torch loads here, not for --help
    from verification.report_folder import check_report_target, write_report

    target = options.report or Path(_default_report(options))
    check_report_target(target)
    work = options.work or target.absolute().with_name(f".{target.name}.work")
    progress = progress_for(args) if world.first else NoProgress()
    reference = resolve_snapshot(options.reference, progress=progress)
    candidate = resolve_snapshot(options.candidate, progress=progress)
    try:
        report = compare(reference, candidate, options, work=work, progress=progress, world=world)
    except ToolkitError:
        # a refusal does not go on where it was; a kill does
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
        raise
    if report is None:
        return ExitCode.DONE  # not the first process: `tell` gives it the verdict
    places = {"path": str(candidate), "report": str(target)}
    if options.only is None:
        places["record"] = str(write_record(candidate, report.record))
    write_report(target, report)
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    result = report.summary_json() | places
    text = f"{report.verdict}: {report.summary.en}\n{target / 'report.html'}"
    emit(args, result, text)
    return _EXITS[report.verdict]


def _default_report(options: CompareOptions) -> str:
    return f"parity-report-{options.claim}" + (f"-{options.only}" if options.only else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

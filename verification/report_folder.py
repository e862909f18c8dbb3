"""Write a report folder beside its place, and give it its name when it is complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from model_store.canonical import parse_json
from model_store.errors import StoreError
from model_store.files import exclusive, write_text
from model_store.folder_swap import put_in_place, rescue
from verification.errors import ReportTargetError
from verification.html_report import html
from verification.junit_report import junit
from verification.markdown_report import markdown
from verification.report import ParityReport

_NAME = "parity.json"
_OURS = "ferry.parity/"  # of whichever version


def check_report_target(target: Path) -> None:
    """Refuse a place that holds anything but an older report of ours.

    Raises:
        ReportTargetError: it does.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ReportTargetError(f"{target} is not a folder")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise ReportTargetError(f"{target} holds something that is not a parity report")


def _is_ours(target: Path) -> bool:
    try:
        value = parse_json((target / _NAME).read_bytes(), name=_NAME)
    except (OSError, StoreError):
        return False
    return isinstance(value, dict) and str(value.get("schema")).startswith(_OURS)


def write_report(target: Path, report: ParityReport) -> None:
    """Write all four files of a report; an older report is replaced as a whole.

    Raises:
        ReportTargetError: see `check_report_target`.
        BusyError: another process is writing the same report.
    """
    target = target.absolute()
    check_report_target(target)
    building = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with exclusive(lock, wait=False, what=str(target)):
        try:
            rescue(target)
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            text = json.dumps(report.json(), ensure_ascii=False, indent=1, allow_nan=False)
            write_text(building / _NAME, text + "\n")
            write_text(building / "junit.xml", junit(report))
            write_text(building / "summary.md", markdown(report))
            write_text(building / "report.html", html(report))
            put_in_place(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)

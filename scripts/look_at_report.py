"""Draw the parity report's page in headless Chromium, as people will see it.

Makes reports of made-up numbers, or takes one that is there, and writes pictures: light, dark,
phone width, all of these in Chinese, and the list of all samples opened with ten thousand of them.
Prints how long the browser took. Needs `chromium` on the PATH.

Examples:
  python -m scripts.look_at_report build/report-pictures
  python -m scripts.look_at_report build/report-pictures --report build/demo/parity-quantized-report
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

_WIDE, _PHONE, _LONG = "1200,9500", "400,15500", "1200,12000"  # whole pages


def main() -> int:
    """Write the pages and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where pages and pictures go")
    parser.add_argument("--report", type=Path, help="a report folder, instead of made-up numbers")
    parser.add_argument("--samples", type=int, default=10_000, help="of the large page")
    args = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        print("chromium is not on the PATH", file=sys.stderr)
        return 1
    args.folder.mkdir(parents=True, exist_ok=True)
    page = _page(args.report)
    for name, text, size, dark in (
        ("light", page, _WIDE, False),
        ("dark", page, _WIDE, True),
        ("chinese", _chinese(page), _WIDE, False),
        ("chinese-dark", _chinese(page), _WIDE, True),
        ("chinese-phone", _chinese(page), _PHONE, False),
        ("phone", page, _PHONE, False),
        ("phone-dark", page, _PHONE, True),
        (f"{args.samples}-samples", _opened(args.samples), _LONG, False),
    ):  # fmt: skip
        html = args.folder / f"{name}.html"
        html.write_text(text, encoding="utf-8")
        seconds = _shoot(browser, html, size, dark=dark)
        print(f"{name}: {len(text) / 1e6:.1f} MB, drawn in {seconds:.1f} s")
    return 0


def _chinese(page: str) -> str:
    """The page as after a click on its switch."""
    page = page.replace('id="show-en" checked', 'id="show-en"')
    return page.replace('id="show-zh"', 'id="show-zh" checked')


def _page(report: Path | None) -> str:
    if report is not None:
        return (report / "report.html").read_text(encoding="utf-8")
    from tests.verification.made_report import made_report
    from verification.html_report import html

    return html(made_report(400, worse=1.3))


def _opened(samples: int) -> str:
    """The page with the list of all samples open, as after a click on it."""
    from tests.verification.made_report import made_report
    from verification.html_report import html

    page = html(made_report(samples))
    return page.replace('id="explorer"', 'id="explorer" open')


def _shoot(browser: str, page: Path, size: str, *, dark: bool) -> float:
    picture = page.with_suffix(".png")
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--window-size={size}", f"--screenshot={picture}", "--virtual-time-budget=4000",
    ]  # fmt: skip
    if dark:
        command += ["--blink-settings=preferredColorScheme=0"]
    started = time.perf_counter()
    subprocess.run([*command, page.absolute().as_uri()], check=True, capture_output=True)  # noqa: S603
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())

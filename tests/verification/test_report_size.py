"""Ten thousand samples: what the browser gets, and what of it is in the document at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

import verification
from tests.verification.made_report import made_report
from verification.html_report import html
from verification.junit_report import junit
from verification.markdown_report import markdown
from verification.report import ParityReport

_SCHEMA = Path(next(iter(verification.__path__))) / "parity.schema.json"


@pytest.fixture(scope="module")
def large() -> ParityReport:
    return made_report(10_000)


def test_ten_thousand_samples_are_data_and_only_the_worst_twenty_are_drawn(
    large: ParityReport,
) -> None:
    page = html(large)

    data = re.search(r'id="samples">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert len(json.loads(data[1])) == 10_000
    assert page.count('class="card sample"') == 20
    assert page.count("<tr") < 150  # measurements, kinds of question, facts: no row per sample
    assert len(page.encode()) < 4_000_000


def test_the_other_files_of_a_large_report_stay_small_and_valid(large: ParityReport) -> None:
    assert len(markdown(large).encode()) < 65_536  # far below what a CI job page takes
    assert len(junit(large).encode()) < 65_536
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(made_report(40).json(), schema)


def test_a_report_of_a_broken_candidate_still_draws() -> None:
    page = html(made_report(40, worse=3.0))

    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).lower()

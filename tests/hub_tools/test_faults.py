from pathlib import Path

import pytest

from tests.hub_tools.fault_stage import OURS, Client
from tests.hub_tools.fault_table import ROWS, Row

_EACH = [
    pytest.param(
        row,
        client,
        id=f"{row.id}-{client.dialect}",
        # by turns one dialect is in the default suite, the other among the slow tests
        marks=[pytest.mark.slow] if row.slow or (number + turn) % 2 else [],
    )
    for number, row in enumerate(ROWS)
    for turn, client in enumerate(OURS)
]


@pytest.mark.parametrize(("row", "client"), _EACH)
def test_every_fault_ends_in_good_bytes_or_in_one_precise_error(
    row: Row, client: Client, tmp_path: Path
) -> None:
    try:
        report = row.play(client, tmp_path)
    except PermissionError as error:
        pytest.skip(str(error))

    assert row.complaint(client, report) == "", report


def test_every_row_has_a_name_of_its_own() -> None:
    ids = [row.id for row in ROWS]

    assert len(set(ids)) == len(ids)

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_tools.errors import HubProtocolError
from hub_tools.json_rows import RowReader

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@patient
@given(
    rows=st.lists(values, max_size=6),
    before=st.text(max_size=12),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
)
def test_rows_come_out_however_they_arrive(
    rows: list[Any], before: str, size: int, indent: int | None
) -> None:
    answer = {"Message": before + '"Files": [', "Data": {"Files": rows, "Count": 3}, "Code": 200}
    reader = RowReader("Files", lambda row: row, where="a listing")

    around = reader.read(pieces(json.dumps(answer, indent=indent).encode(), size))

    assert reader.rows == rows
    assert json.loads(around) == {**answer, "Data": {"Files": [], "Count": 3}}


@patient
@given(data=st.binary(max_size=60))
def test_what_has_no_such_list_is_kept_as_it_is(data: bytes) -> None:
    reader = RowReader("Files", lambda row: row, where="a listing")

    try:
        around = reader.read([data])
    except HubProtocolError:
        return

    assert around == data
    assert reader.rows == []


@pytest.mark.parametrize(
    "text",
    ['{"Files": [{"a": 1}', '{"Files": [{"a": 1, "a": 2}]}', '{"Files": [NaN]}', '{"Files": [}'],
)
def test_a_damaged_row_is_refused(text: str) -> None:
    reader = RowReader("Files", lambda row: row, where="a listing")

    with pytest.raises(HubProtocolError, match="a listing is not valid JSON"):
        reader.read([text.encode()])


def test_a_second_try_begins_anew() -> None:
    reader = RowReader("Files", lambda row: row, where="a listing")

    reader.read([b'{"Files": [1, 2', b"]}"])
    reader.read([b'{"Files": [3]}'])

    assert reader.rows == [3]

"""Whatever a hub, a network or a leftover says: good bytes, or one of our errors."""

from __future__ import annotations

import json
import random
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub_tools.server.app import running_hub
from hub_tools.snapshots import download_snapshot
from model_store.errors import ToolkitError, UnsafePathError
from model_store.paths import check_relative_path, inside
from tests.hub_tools.checkpoints import REPO, contents, reach, write_files
from tests.hub_tools.faults import LISTINGS
from tests.hub_tools.faulty_hub import Answer, Fault, FaultyHub, faulty_hub, truncated, with_header

WEIGHTS = random.Random(3).randbytes(250_000)
FILES = {"config.json": b"{}", "a/note.txt": b"note", "model.safetensors": WEIGHTS}
DIALECTS = st.sampled_from(["huggingface", "modelscope"])
short = settings(
    max_examples=15, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    root = tmp_path_factory.mktemp("fuzz")
    write_files(root / REPO, FILES)
    with running_hub(root) as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def download(hub: FaultyHub, dialect: str, home: Path) -> dict[str, bytes] | None:
    """Download into a store of its own; None is an error of ours, anything else gets out."""
    try:
        folder = download_snapshot(f"{dialect}:{REPO}", around=reach(hub.endpoint, home / "in"))
    except ToolkitError:
        folder = None
    assert [path.name for path in home.iterdir() if path.name != "in"] == []
    return contents(folder) if folder is not None else None


def answering(body: bytes, *, status: int = 200) -> Fault:
    def fault(answer: Answer) -> Answer:
        return Answer(status, {"Content-Type": "application/json"}, body)

    return fault


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
paths = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["..", ".", "", "a", "con", "nul.txt", "C:", "~", " ", "a.", "数据", "\0"]),
        min_size=1,
        max_size=5,
    ).map("/".join),
    st.sampled_from(["/etc/passwd", "\\\\host\\share", "C:/x", "a\\..\\b", "x" * 300, "\ud800"]),
)
hf_entries = st.fixed_dictionaries(
    {"type": st.sampled_from(["file", "directory", "?"]), "path": paths | json_values},
    optional={
        "size": st.integers(-5, 1 << 70) | json_values,
        "oid": st.text(string.hexdigits, min_size=40, max_size=40) | json_values,
        "lfs": json_values | st.fixed_dictionaries({"oid": st.text(), "size": st.integers()}),
    },
)
ms_entries = st.fixed_dictionaries(
    {"Type": st.sampled_from(["blob", "tree", "?"]), "Path": paths | json_values},
    optional={
        "Size": st.integers(-5, 1 << 70) | json_values,
        "Sha256": st.text(string.hexdigits, min_size=64, max_size=64) | json_values,
    },
)
hf_listings = st.lists(hf_entries, max_size=4) | json_values
ms_listings = st.one_of(
    st.lists(ms_entries, max_size=4).map(lambda rows: {"Code": 200, "Data": {"Files": rows}}),
    json_values.map(lambda rows: {"Code": 200, "Data": {"Files": rows}}),
    json_values,
)


@short
@given(
    listing=st.one_of(
        hf_listings.map(lambda value: ("huggingface", value)),
        ms_listings.map(lambda value: ("modelscope", value)),
    )
)
def test_no_listing_breaks_us_or_gets_out(hub: FaultyHub, listing: tuple[str, Any]) -> None:
    dialect, value = listing
    hub.heal()
    hub.always[LISTINGS[dialect]] = answering(json.dumps(value).encode())

    with tempfile.TemporaryDirectory() as home:
        download(hub, dialect, Path(home))


@short
@given(dialect=DIALECTS, body=st.binary(max_size=60), status=st.sampled_from([200, 206, 404, 418]))
def test_no_body_of_a_listing_breaks_us(
    hub: FaultyHub, dialect: str, body: bytes, status: int
) -> None:
    hub.heal()
    hub.always[LISTINGS[dialect]] = answering(body, status=status)

    with tempfile.TemporaryDirectory() as home:
        download(hub, dialect, Path(home))


@settings(max_examples=300)
@given(path=paths)
def test_a_path_is_refused_or_stays_inside(path: str) -> None:
    folder = Path("/somewhere/target")

    try:
        check_relative_path(path)
    except UnsafePathError:
        return

    place = (folder / path).resolve()
    assert place.is_relative_to(folder)
    assert place != folder
    assert inside(folder, path) == folder / path


numbers = st.integers(0, 300_000) | st.integers(0, 1 << 80)
ranges = st.one_of(
    st.tuples(numbers, numbers, numbers | st.just("*")).map(
        lambda t: f"bytes {t[0]}-{t[1]}/{t[2]}"
    ),
    st.text(string.ascii_letters + string.digits + " -/*=,;", max_size=30),
)


@settings(short, max_examples=10)
@given(dialect=DIALECTS, text=ranges, status=st.sampled_from([200, 206, 416]))
def test_no_content_range_brings_wrong_bytes(
    hub: FaultyHub, dialect: str, text: str, status: int
) -> None:
    def fault(answer: Answer) -> Answer:
        answer.status = status
        return with_header("Content-Range", text)(answer)

    hub.heal()
    hub.always["model.safetensors"] = fault

    with tempfile.TemporaryDirectory() as home:
        assert download(hub, dialect, Path(home)) in (FILES, None)


# every name in here is this machine, or no name at all
locations = st.tuples(
    st.sampled_from(
        [
            "", "/", "?", "#", "http:", "http://", "http://[", "http://[::1", "http://127.0.0.1:1/",
            "http://127.0.0.1:0/", "http://127.0.0.1:99999/", "https://127.0.0.1:1/",
            "//127.0.0.1:1/", "file:///etc/", "ftp://127.0.0.1/", "data:,", "http://user:word@127.0.0.1:1/",
        ]
    ),
    st.text(string.digits + "%?#&=;:[]{} .~", max_size=12),
).map("".join)  # fmt: skip


@short
@given(
    dialect=DIALECTS,
    location=locations.filter(lambda text: not text.startswith("http://") or "127.0.0.1" in text),
    piece=st.sampled_from(["model.safetensors", "/api/"]),
)
def test_no_redirect_breaks_us(hub: FaultyHub, dialect: str, location: str, piece: str) -> None:
    hub.heal()
    hub.always[piece] = lambda answer: Answer(302, {"Location": location}, b"")

    with tempfile.TemporaryDirectory() as home:
        assert download(hub, dialect, Path(home)) in (FILES, None)


@settings(short, max_examples=6)
@given(dialect=DIALECTS, data=st.data())
def test_no_leftover_is_believed(hub: FaultyHub, dialect: str, data: st.DataObject) -> None:
    hub.heal()
    hub.always["model.safetensors"] = truncated(3_000)
    with tempfile.TemporaryDirectory() as home:
        first = download(hub, dialect, Path(home))
        leftovers = sorted(Path(home).rglob("*.partial"))
        assert first is None
        assert leftovers
        for path in leftovers:
            path.write_bytes(data.draw(_damaged(path.read_bytes())))
        hub.heal()

        assert download(hub, dialect, Path(home)) == FILES


def _damaged(original: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that are not what was written, or are."""
    size = len(original)
    flips = st.lists(st.tuples(st.integers(0, max(0, size - 1)), st.integers(1, 255)), max_size=5)

    def flipped(changes: list[tuple[int, int]]) -> bytes:
        found = bytearray(original)
        for at, mask in changes:
            if at < size:
                found[at] ^= mask
        return bytes(found)

    return st.one_of(
        st.just(original),
        flips.map(flipped),
        st.integers(0, size).map(lambda end: original[:end]),
        st.binary(max_size=200),
    )

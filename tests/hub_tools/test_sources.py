"""One file from several sources: speed, failures, lies."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.errors import HubUnreachableError, TransferError
from hub_tools.protocol import RemoteFile
from hub_tools.retries import RetryPolicy
from hub_tools.sources import Offer, Source, Wanted
from hub_tools.transfer import Fetched, fetch
from hub_tools.transfer_options import TransferOptions
from model_store.errors import DigestMismatchError
from model_store.progress import NoProgress
from tests.hub_tools.capped_server import capped_server, flipped, nothing_but, timed

MB = 1_000_000
DATA = random.Random(4).randbytes(8 * MB)
SHA256 = hashlib.sha256(DATA).hexdigest()
FINE = TransferOptions(
    connections=4, part_size=100_000, smallest_request=400_000, largest_request=1_000_000
)
HASTY = RetryPolicy(first_delay=0.05, stall_timeout=0.5)


def wanted(folder: Path, *sources: Source, data: bytes = DATA) -> Wanted:
    file = RemoteFile("model.bin", len(data), hashlib.sha256(data).hexdigest())
    return Wanted(file, folder / "model.bin", tuple(Offer(it, "model.bin") for it in sources))


def run(*items: Wanted, options: TransferOptions = FINE) -> Fetched:
    return fetch(items, options=options, progress=NoProgress())


def test_two_sources_of_equal_speed_share_a_file(tmp_path: Path) -> None:
    with (
        capped_server(DATA, rate=4 * MB) as one,
        capped_server(DATA, rate=4 * MB) as two,
    ):
        alone = timed(lambda: run(wanted(tmp_path / "a", one.source("one"))))
        both = wanted(tmp_path / "b", one.source("one"), two.source("two"))
        together = timed(lambda: run(both))

    assert both.place.read_bytes() == DATA
    assert alone / together > 1.5  # 1.8 and more where nothing else runs: benchmarks/
    assert nothing_but(tmp_path / "b", "model.bin")


def test_a_slow_source_loses_its_parts_to_the_fast_one(tmp_path: Path) -> None:
    with capped_server(DATA) as fast, capped_server(DATA, rate=20_000) as slow:
        item = wanted(tmp_path, slow.source("slow"), fast.source("fast"))
        seconds = timed(lambda: run(item))

    assert item.place.read_bytes() == DATA
    assert seconds < 15  # alone the slow one needs seven minutes


def test_a_source_that_fails_is_left_out(tmp_path: Path) -> None:
    with capped_server(DATA) as good, capped_server(DATA, status=403) as bad:
        item = wanted(tmp_path, bad.source("bad"), good.source("good"))
        fetched = run(item)

    assert item.place.read_bytes() == DATA
    by_label = {report.label: report for report in fetched.sources}
    assert by_label["bad"].bytes == 0
    assert by_label["good"].bytes == len(DATA)
    assert len(bad.ranges) <= FINE.connections


@pytest.mark.parametrize("liar", [0, 1])
def test_a_source_that_serves_wrong_bytes_is_named(tmp_path: Path, liar: int) -> None:
    served = [DATA, DATA]
    served[liar] = DATA.translate(bytes(byte ^ 1 for byte in range(256)))
    with (
        capped_server(served[0], rate=8 * MB) as one,
        capped_server(served[1], rate=8 * MB) as two,
    ):
        item = wanted(tmp_path, one.source("one"), two.source("two"))
        fetched = run(item)

    assert item.place.read_bytes() == DATA
    honest, lying = fetched.sources[1 - liar], fetched.sources[liar]
    assert honest.banned == ()
    assert lying.banned[0].startswith("model.bin: bytes ")


def test_a_file_that_every_source_serves_wrong_is_refused(tmp_path: Path) -> None:
    with (
        capped_server(flipped(DATA, 100)) as one,
        capped_server(flipped(DATA, 7_000_000)) as two,
        pytest.raises(DigestMismatchError),
    ):
        run(wanted(tmp_path, one.source("one"), two.source("two"), data=DATA))

    assert list(tmp_path.iterdir()) == []


def test_a_stalled_connection_is_left_and_its_bytes_are_kept(tmp_path: Path) -> None:
    with capped_server(DATA, rate=4 * MB) as good, capped_server(DATA, stalls_at=2 * MB) as bad:
        item = wanted(tmp_path, bad.source("bad", retry=HASTY), good.source("good"))
        run(item)

    assert item.place.read_bytes() == DATA
    assert good.sent + bad.sent < 1.6 * len(DATA)


def test_a_source_that_is_down_is_one_clear_error_when_it_is_the_only_one(tmp_path: Path) -> None:
    with capped_server(DATA) as gone:
        source = gone.source("gone", retry=RetryPolicy(first_delay=0.01))

    with pytest.raises(HubUnreachableError):
        run(wanted(tmp_path, source), options=replace(FINE, attempts=2))


def test_an_uncertain_offer_is_asked_only_when_nothing_else_is_left(tmp_path: Path) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    file = RemoteFile("a.json", len(DATA), git_sha1=git)
    with capped_server(DATA) as own, capped_server(DATA) as other:
        offers = (
            Offer(own.source("own"), "a.json"),
            Offer(other.source("other"), "a.json", certain=False),
        )
        run(Wanted(file, tmp_path / "a.json", offers))
        asked_in_vain = len(other.ranges)
        own.status = 503
        run(Wanted(file, tmp_path / "b.json", offers), options=replace(FINE, attempts=2))

    assert asked_in_vain == 0
    assert (tmp_path / "b.json").read_bytes() == DATA


def test_an_uncertain_offer_of_other_bytes_is_refused(tmp_path: Path) -> None:
    git = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    file = RemoteFile("a.json", len(DATA), git_sha1=git)
    with capped_server(DATA, status=404) as own, capped_server(flipped(DATA, 9)) as other:
        offers = (
            Offer(own.source("own"), "a.json"),
            Offer(other.source("other"), "a.json", certain=False),
        )
        with pytest.raises(DigestMismatchError):
            run(Wanted(file, tmp_path / "a.json", offers))

    assert list(tmp_path.iterdir()) == []


def test_a_rate_limit_holds_over_all_connections(tmp_path: Path) -> None:
    data = DATA[: 3 * MB]
    with capped_server(data) as hub:
        item = wanted(tmp_path, hub.source("hub"), data=data)
        seconds = timed(lambda: run(item, options=replace(FINE, limit_rate=2.0 * MB)))

    assert item.place.read_bytes() == data
    assert 1.2 < seconds < 6


def test_connections_grow_only_while_that_pays(tmp_path: Path) -> None:
    many = replace(FINE, connections=16, largest_request=400_000)
    with capped_server(DATA, rate=4 * MB) as capped:
        run(wanted(tmp_path, capped.source("capped")), options=many)
        open_at_once = len(capped.ranges)

    assert 4 <= open_at_once <= 40


def test_a_trickle_is_given_up_within_its_patience(tmp_path: Path) -> None:
    hurried = replace(FINE, rate_window=0.5, patience=1.0)
    with capped_server(DATA, rate=200, pieces=10) as hub:
        item = wanted(tmp_path, hub.source("hub"))

        with pytest.raises(TransferError, match="trickle"):
            run(item, options=hurried)
        hub.rate, hub.pieces = None, 1 << 15
        run(item)

    assert item.place.read_bytes() == DATA

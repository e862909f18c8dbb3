import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub_tools.disk_space import check_disk_space
from hub_tools.errors import (
    DiskSpaceError,
    GitDigestMismatchError,
    HubError,
    HubProtocolError,
    SizeMismatchError,
    TransferError,
)
from hub_tools.http import Http
from hub_tools.partial_file import PartialFile, leftovers
from hub_tools.protocol import RemoteFile
from hub_tools.retries import RetryPolicy
from hub_tools.server.app import running_hub
from hub_tools.settings import Network, Secret
from hub_tools.sources import Offer, Source, Wanted
from hub_tools.transfer import fetch
from hub_tools.transfer_options import TransferOptions
from model_store.errors import DigestMismatchError
from model_store.progress import NoProgress
from tests.hub_tools.checkpoints import FILES, IMPATIENT, REPO, WEIGHTS, write_files
from tests.hub_tools.faulty_hub import (
    FaultyHub,
    corrupted,
    faulty_hub,
    held_at,
    redirected,
    refused,
    reset_after,
    slow,
    truncated,
    with_header,
)

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
WHOLE = TransferOptions(connections=4, part_size=10 << 20)
PARTS = TransferOptions(
    connections=4, part_size=100_000, smallest_request=100_000, largest_request=100_000
)
BOTH = pytest.mark.parametrize("options", [WHOLE, PARTS], ids=["whole", "parts"])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def source(hub: FaultyHub, *, label: str = "huggingface", retry: RetryPolicy = IMPATIENT) -> Source:
    http = Http(hub.endpoint, Network({}), Secret("token"), retry=retry)
    return Source(
        label, "huggingface", http, lambda path: f"{hub.endpoint}/{REPO}/resolve/main/{path}"
    )


def weights(hub: FaultyHub, folder: Path, *, retry: RetryPolicy = IMPATIENT) -> Wanted:
    file = RemoteFile("model.safetensors", len(WEIGHTS), SHA256)
    return Wanted(file, folder / "model.safetensors", (Offer(source(hub, retry=retry), file.path),))


def run(*wanted: Wanted, options: TransferOptions) -> dict[Path, str]:
    return fetch(wanted, options=options, progress=NoProgress()).digests


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@BOTH
def test_a_file_arrives_and_nothing_else_stays(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions
) -> None:
    wanted = weights(hub, tmp_path / "out")

    digests = run(wanted, options=options)

    assert digests == {wanted.place: SHA256}
    assert wanted.place.read_bytes() == WEIGHTS
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_a_large_file_comes_in_ranges(hub: FaultyHub, tmp_path: Path) -> None:
    run(weights(hub, tmp_path / "out"), options=PARTS)

    ranges = sorted(seen.range or "" for seen in hub.seen)
    assert ranges == sorted(f"bytes={n}-{n + 99_999}" for n in range(0, 600_000, 100_000))


def test_one_worker_needs_one_connection(hub: FaultyHub, tmp_path: Path) -> None:
    run(weights(hub, tmp_path / "out"), options=replace(PARTS, connections=1))

    assert len(hub.seen) == 6
    assert len({seen.connection for seen in hub.seen}) == 1


@BOTH
@pytest.mark.parametrize(
    "fault",
    [truncated(70_001), truncated(0), reset_after(70_001), refused(503), refused(429)],
    ids=["truncated", "empty", "reset", "503", "429"],
)
def test_a_break_keeps_the_bytes_that_came(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions, fault: object
) -> None:
    hub.faults["model.safetensors"] = [fault, None, fault]  # type: ignore[list-item]
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=options)

    assert wanted.place.read_bytes() == WEIGHTS


def test_a_truncated_file_goes_on_where_it_stopped(hub: FaultyHub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [truncated(250_000)]

    run(weights(hub, tmp_path / "out"), options=WHOLE)

    assert [seen.range for seen in hub.seen] == [None, "bytes=250000-599999"]


@BOTH
def test_a_file_that_is_corrupt_once_is_fetched_again(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions
) -> None:
    hub.faults["model.safetensors"] = [corrupted]
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=options)

    assert wanted.place.read_bytes() == WEIGHTS


@BOTH
def test_a_file_that_stays_corrupt_never_gets_its_name(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions
) -> None:
    hub.always["model.safetensors"] = corrupted

    with pytest.raises(DigestMismatchError) as caught:
        run(weights(hub, tmp_path / "out"), options=options)

    assert caught.value.path == "model.safetensors"
    assert caught.value.expected == SHA256
    assert names(tmp_path / "out") == []


def test_a_small_file_is_checked_by_its_git_id(hub: FaultyHub, tmp_path: Path) -> None:
    data = FILES["config.json"]
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    file = RemoteFile("config.json", len(data), git_sha1=git)
    place = tmp_path / "out" / "config.json"
    wanted = Wanted(file, place, (Offer(source(hub), file.path),))

    run(wanted, options=WHOLE)
    wanted.place.unlink()
    hub.always["config.json"] = corrupted

    with pytest.raises(GitDigestMismatchError):
        run(wanted, options=WHOLE)
    assert names(tmp_path / "out") == []


def test_a_promise_that_comes_with_the_file_is_kept_to(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["model.safetensors"] = with_header("X-Linked-ETag", f'"{"0" * 64}"')
    wanted = weights(hub, tmp_path / "out")
    wanted = replace(wanted, file=RemoteFile("model.safetensors", len(WEIGHTS)))

    with pytest.raises(DigestMismatchError):
        run(wanted, options=WHOLE)


@pytest.mark.parametrize("sha256", [None, hashlib.sha256().hexdigest()])
def test_an_empty_file_needs_no_request(hub: FaultyHub, tmp_path: Path, sha256: str | None) -> None:
    place = tmp_path / "out" / "empty"

    run(
        Wanted(RemoteFile("empty", 0, sha256), place, (Offer(source(hub), "empty"),)), options=WHOLE
    )

    assert place.read_bytes() == b""
    assert hub.seen == []


def test_an_empty_file_with_a_wrong_promise_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    wanted = Wanted(
        RemoteFile("empty", 0, "0" * 64), tmp_path / "out" / "empty", (Offer(source(hub), "empty"),)
    )

    with pytest.raises(DigestMismatchError):
        run(wanted, options=WHOLE)

    assert not wanted.place.exists()


@BOTH
def test_a_hub_without_ranges_still_delivers(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions
) -> None:
    hub.without_range = True
    hub.faults["model.safetensors"] = [truncated(250_000)]
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=options)

    assert wanted.place.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "text", ["bytes 0-99999/600000", "bytes 100000-199999/7", "nonsense", "bytes 100000-199998/*"]
)
def test_a_wrong_content_range_is_refused(hub: FaultyHub, tmp_path: Path, text: str) -> None:
    hub.always["model.safetensors"] = with_header("Content-Range", text)
    options = replace(PARTS, attempts=2, connections=1)
    partial = PartialFile(
        tmp_path / "out" / "model.safetensors",
        600_000,
        identity=f"sha256:{SHA256}",
        part_size=100_000,
    )
    assert partial.try_open()
    partial.write(partial.lease(0, 100_000), WEIGHTS[:100_000])
    partial.close()

    with pytest.raises((HubProtocolError, SizeMismatchError)):
        run(weights(hub, tmp_path / "out"), options=options)

    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_file_of_another_length_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    wanted = weights(hub, tmp_path / "out")
    longer = replace(wanted, file=replace(wanted.file, size=len(WEIGHTS) + 1))

    with pytest.raises(SizeMismatchError, match="600001"):
        run(longer, options=replace(WHOLE, attempts=2))


def test_a_signed_url_that_expired_is_asked_for_again(hub: FaultyHub, tmp_path: Path) -> None:
    with faulty_hub(hub.upstream) as storage:
        path = f"/{REPO}/resolve/main/model.safetensors"
        hub.always["model.safetensors"] = redirected(f"{storage.endpoint}{path}?sig=1")
        storage.faults["model.safetensors"] = [truncated(100_000), refused(403)]
        wanted = weights(hub, tmp_path / "out")

        run(wanted, options=WHOLE)

    assert wanted.place.read_bytes() == WEIGHTS
    assert len(hub.seen) == 3
    assert all("authorization" not in seen.headers for seen in storage.seen)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_hub_itself_is_final(hub: FaultyHub, tmp_path: Path, status: int) -> None:
    hub.always["model.safetensors"] = refused(status)

    with pytest.raises(HubError, match=r"model\.safetensors"):
        run(weights(hub, tmp_path / "out"), options=WHOLE)

    assert len(hub.seen) == 1


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["model.safetensors"] = refused(503, Retry_After="3600")

    with pytest.raises(HubError, match="503"):
        run(weights(hub, tmp_path / "out"), options=WHOLE)

    assert len(hub.seen) == 1


def test_bytes_that_only_trickle_are_given_up(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["model.safetensors"] = slow(0.05, 10)
    options = replace(WHOLE, attempts=2, lowest_rate=10_000, rate_window=0.3)

    with pytest.raises(TransferError, match="trickle"):
        run(weights(hub, tmp_path / "out"), options=options)


def test_a_hub_that_falls_silent_is_given_up(hub: FaultyHub, tmp_path: Path) -> None:
    hub.always["model.safetensors"] = slow(30, 100)
    hasty = RetryPolicy(attempts=1, first_delay=0.01, stall_timeout=0.3)

    with pytest.raises(HubError, match="nothing came in time"):
        run(weights(hub, tmp_path / "out", retry=hasty), options=replace(WHOLE, attempts=2))


def test_a_failed_run_is_continued_by_the_next(hub: FaultyHub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [truncated(250_000)]
    hub.always["model.safetensors"] = truncated(0)
    wanted = weights(hub, tmp_path / "out")
    with pytest.raises(TransferError):
        run(wanted, options=replace(WHOLE, attempts=2))
    assert not wanted.place.exists()
    hub.always.clear()
    hub.seen.clear()

    run(wanted, options=WHOLE)

    assert [seen.range for seen in hub.seen] == ["bytes=250000-599999"]
    assert wanted.place.read_bytes() == WEIGHTS


def test_a_damaged_leftover_is_found_and_fetched_anew(hub: FaultyHub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [truncated(250_000)]
    hub.always["model.safetensors"] = truncated(0)
    wanted = weights(hub, tmp_path / "out")
    with pytest.raises(TransferError):
        run(wanted, options=replace(WHOLE, attempts=2))
    hub.always.clear()
    partial, _ = leftovers(wanted.place)
    with partial.open("r+b") as damaged:
        damaged.seek(1000)
        damaged.write(b"damage")

    run(wanted, options=WHOLE)

    assert wanted.place.read_bytes() == WEIGHTS


@pytest.mark.parametrize("journal", [b"", b"{}", b"[]" * 900, b'{"part_size": 0}' + b" " * 2000])
def test_a_journal_that_makes_no_sense_is_dropped(
    hub: FaultyHub, tmp_path: Path, journal: bytes
) -> None:
    wanted = weights(hub, tmp_path / "out")
    partial, parts = leftovers(wanted.place)
    partial.parent.mkdir()
    partial.write_bytes(bytes(len(WEIGHTS)))
    parts.write_bytes(journal)

    run(wanted, options=PARTS)

    assert wanted.place.read_bytes() == WEIGHTS


def test_a_leftover_of_another_file_is_dropped(tmp_path: Path) -> None:
    size = 1 << 20
    first = PartialFile(tmp_path / "x", size, identity="sha256:a", part_size=size // 2)
    assert first.try_open()
    first.write(first.lease(size // 2, size), b"abc")
    first.close()

    same = PartialFile(tmp_path / "x", size, identity="sha256:a", part_size=10)
    assert same.try_open()
    received, missing = same.received, same.missing()
    same.close()
    other = PartialFile(tmp_path / "x", size, identity="sha256:b", part_size=size // 2)
    assert other.try_open()

    assert received == 3
    assert missing == [(0, size // 2), (size // 2 + 3, size)]  # the leftover keeps its own cut
    assert other.received == 0
    other.close()


def test_two_transfers_of_one_file_fetch_it_once(hub: FaultyHub, tmp_path: Path) -> None:
    release = threading.Event()
    hub.faults["model.safetensors"] = [held_at(300_000, release)]
    wanted = weights(hub, tmp_path / "out")
    first = threading.Thread(target=lambda: run(wanted, options=WHOLE))
    first.start()
    while not hub.seen:
        time.sleep(0.01)
    threading.Timer(0.5, release.set).start()

    digests = run(wanted, options=WHOLE)
    first.join()

    assert digests == {wanted.place: SHA256}
    assert len(hub.seen) == 1


def test_parts_in_any_order_give_the_digest_of_the_whole(tmp_path: Path) -> None:
    file = PartialFile(tmp_path / "x", len(WEIGHTS), identity="x", part_size=100_000, git_id=True)
    assert file.try_open()
    for index in (3, 0, 5, 1, 4, 2):
        lease = file.lease(index * 100_000, (index + 1) * 100_000)
        while file.write(lease, WEIGHTS[lease.position : lease.position + 33_000]):
            pass

    claimed = file.claim_finish(file.generation)
    digests = file.digests()
    file.commit()

    assert claimed
    assert digests.sha256 == SHA256
    assert digests.git_sha1 == hashlib.sha1(b"blob 600000\0" + WEIGHTS).hexdigest()
    assert (tmp_path / "x").read_bytes() == WEIGHTS


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    file = RemoteFile("huge", 1 << 49, "0" * 64)

    with pytest.raises(DiskSpaceError, match="are to be fetched"):
        check_disk_space([Wanted(file, tmp_path / "not" / "there" / "huge", ())])


def test_a_place_that_cannot_be_written_is_one_clear_error(hub: FaultyHub, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")

    with pytest.raises(TransferError, match="cannot write"):
        run(weights(hub, tmp_path / "out"), options=WHOLE)

"""Answers that are not what was asked for, and still bring the right bytes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from hub_tools.errors import HubProtocolError
from hub_tools.http import Http
from hub_tools.partial_file import PartialFile
from hub_tools.protocol import RemoteFile
from hub_tools.receiving import Receiver
from hub_tools.scheduling import Job, Schedule, Work
from hub_tools.server.app import running_hub
from hub_tools.settings import Network
from hub_tools.source_state import Ledger
from hub_tools.sources import Offer, Source, Wanted
from hub_tools.transfer_options import TransferOptions
from tests.hub_tools import faults
from tests.hub_tools.checkpoints import FILES, WEIGHTS, write_files
from tests.hub_tools.faulty_hub import Answer, FaultyHub, faulty_hub, truncated, with_header
from tests.hub_tools.test_transfer import BOTH, PARTS, SHA256, WHOLE, run, weights


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def test_a_source_of_wrong_ranges_is_asked_for_the_whole(hub: FaultyHub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [truncated(150_000)]
    hub.always["model.safetensors"] = faults.other_range
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=replace(PARTS, connections=1))

    assert wanted.place.read_bytes() == WEIGHTS
    assert hub.requests("model.safetensors")[-1].range is None


@BOTH
def test_a_body_that_comes_compressed_is_unpacked(
    hub: FaultyHub, tmp_path: Path, options: TransferOptions
) -> None:
    hub.always["model.safetensors"] = faults.gzipped
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=options)

    assert wanted.place.read_bytes() == WEIGHTS


def test_a_file_that_is_called_compressed_and_is_not_is_taken_as_it_is(
    hub: FaultyHub, tmp_path: Path
) -> None:
    hub.always["model.safetensors"] = with_header("Content-Encoding", "gzip")
    wanted = weights(hub, tmp_path / "out")

    run(wanted, options=PARTS)

    assert wanted.place.read_bytes() == WEIGHTS


def test_a_compression_that_we_do_not_know_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    def packed(answer: Answer) -> Answer:
        answer.headers["Content-Encoding"] = "br"
        answer.body = answer.body[:-7]
        return answer

    hub.always["model.safetensors"] = packed

    with pytest.raises(HubProtocolError, match="compressed, by 'br'"):
        run(weights(hub, tmp_path / "out"), options=replace(WHOLE, attempts=2))


def test_a_file_beyond_fifty_gigabytes_comes_by_plain_ranges(tmp_path: Path) -> None:
    size = 60 * 10**9
    with ones_server(size) as (endpoint, asked):
        hub = Source("hub", "huggingface", Http(endpoint, Network({})), lambda path: endpoint)
        file = RemoteFile("model.safetensors", size, sha256=SHA256)
        wanted = Wanted(file, tmp_path / "model.safetensors", (Offer(hub, file.path),))
        schedule = Schedule([wanted], [hub], PARTS)
        partial = PartialFile(wanted.place, size, identity=wanted.identity, part_size=100_000)
        assert partial.try_open()
        end = Ledger(wanted.offers[0], schedule.states[0])
        last = partial.missing()[-1][1]
        start = (last - 1) // partial.part_size * partial.part_size
        work = Work(Job(wanted, partial, [end]), end, partial.lease(start, last), 0.0, start)

        Receiver(schedule, PARTS).receive(work)

        partial.close()
    assert last == size
    assert asked == [f"bytes={start}-{size - 1}"]
    assert work.lease.left == 0


@contextmanager
def ones_server(size: int) -> Iterator[tuple[str, list[str]]]:
    """A file of that many ones, of which only ranges can be had."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            self.wfile.write(b"\1" * (int(last) - int(first) + 1))

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()

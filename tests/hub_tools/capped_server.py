"""A server of one file's ranges with a speed limit for all its connections together."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hub_tools.http import Http
from hub_tools.retries import RetryPolicy
from hub_tools.settings import Network
from hub_tools.sources import Source

_PIECE = 1 << 15
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class CappedServer:
    """What it serves, how fast, and what was asked of it."""

    data: bytes
    rate: float | None = None  # bytes per second in all
    status: int | None = None  # refuse everything with it
    stalls_at: int | None = None  # go silent at this offset of the file
    pieces: int = _PIECE
    ranges: list[str] = field(default_factory=list)
    sent: int = 0
    endpoint: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def source(self, label: str, *, retry: RetryPolicy | None = None) -> Source:
        """This server as a place that bytes come from."""
        http = Http(self.endpoint, Network({}), retry=retry or RetryPolicy(first_delay=0.05))
        return Source(label, "huggingface", http, lambda path: f"{self.endpoint}/{path}")

    def pay(self, amount: int) -> None:
        """Wait until `amount` bytes may be sent."""
        with self._lock:
            self.sent += amount
            if self.rate is None:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + amount / self.rate
            pause = self._free_at - now
        self.closing.wait(max(0.0, pause))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(hub.data))
        hub.ranges.append(self.headers.get("Range", ""))
        self.send_response(hub.status or (206 if match else 200))
        if hub.status:
            start = end = 0
        if match:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(hub.data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        try:
            self._send(start, end)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, start: int, end: int) -> None:
        hub = self.server.hub
        for position in range(start, end, hub.pieces):
            until = min(position + hub.pieces, end)
            if hub.stalls_at is not None and position <= hub.stalls_at < until:
                hub.closing.wait(60)
            if hub.closing.is_set():
                self.close_connection = True
                return
            hub.pay(until - position)
            self.wfile.write(memoryview(hub.data)[position:until])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: CappedServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what these tests are about


@contextmanager
def capped_server(
    data: bytes,
    *,
    rate: float | None = None,
    status: int | None = None,
    stalls_at: int | None = None,
    pieces: int = _PIECE,
) -> Iterator[CappedServer]:
    """Serve `data` from a thread until the block ends."""
    hub = CappedServer(data, rate, status, stalls_at, pieces)
    with _Server(hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def flipped(data: bytes, place: int) -> bytes:
    """The same bytes with one bit wrong."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def nothing_but(folder: Path, name: str) -> bool:
    return [path.name for path in folder.iterdir()] == [name]

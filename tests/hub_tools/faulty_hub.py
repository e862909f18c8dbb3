"""A reverse proxy in front of the local hub that does what bad networks and bad hubs do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})


@dataclass
class Answer:
    """What the hub said; a fault changes it, or how it is sent."""

    status: int
    headers: dict[str, str]
    body: bytes
    send_only: int | None = None  # bytes of the body, then the connection is closed
    reset: bool = False  # … by RST
    pause: float = 0.0  # seconds between pieces
    piece: int = 1 << 16
    hold_at: int | None = None  # wait here …
    release: threading.Event = field(default_factory=threading.Event)  # … for this


Fault = Callable[[Answer], Answer]


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]  # names in lower case
    connection: int  # the client's port

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class FaultyHub:
    """Faults per piece of path, used up in order; None in a list means an honest answer."""

    upstream: str
    endpoint: str = ""
    seen: list[Seen] = field(default_factory=list)
    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    without_range: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for piece, queue in self.faults.items():
                if piece in path and queue:
                    return queue.pop(0)
            return next((fault for piece, fault in self.always.items() if piece in path), None)

    def requests(self, piece: str) -> list[Seen]:
        """The requests whose path has `piece` in it."""
        return [request for request in self.seen if piece in request.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.seen.append(Seen(self.path, headers.copy(), self.client_address[1]))
        if hub.without_range:
            headers.pop("range", None)
        answer = _ask(hub.upstream, self.path, headers)
        fault = hub.fault_for(self.path)
        self._send(fault(answer) if fault else answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        try:
            self._send_body(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if answer.send_only is not None:
            self.close_connection = True
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _send_body(self, answer: Answer) -> None:
        body = answer.body[: answer.send_only]
        for start in range(0, len(body), answer.piece):
            if answer.hold_at is not None and start >= answer.hold_at:
                answer.release.wait(20)
            self.wfile.write(body[start : start + answer.piece])
            time.sleep(answer.pause)
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FaultyHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what these tests are about


@contextmanager
def faulty_hub(upstream: str) -> Iterator[FaultyHub]:
    """Run the proxy from a thread until the block ends."""
    hub = FaultyHub(upstream)
    with _Server(hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _ask(upstream: str, path: str, headers: dict[str, str]) -> Answer:
    parts = urlsplit(upstream)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        passed = {name: value for name, value in headers.items() if name != "host"}
        connection.request("GET", path, headers=passed)
        response = connection.getresponse()
        body = response.read()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP}
        return Answer(response.status, kept, body)
    finally:
        connection.close()


def truncated(count: int) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.send_only = count
        return answer

    return fault


def reset_after(count: int) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.send_only, answer.reset = count, True
        return answer

    return fault


def corrupted(answer: Answer) -> Answer:
    middle = len(answer.body) // 2
    flipped = bytes([answer.body[middle] ^ 1])
    answer.body = answer.body[:middle] + flipped + answer.body[middle + 1 :]
    return answer


def refused(status: int, **headers: str) -> Fault:
    def fault(answer: Answer) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Answer(status, named, b"{}")

    return fault


def redirected(location: str) -> Fault:
    def fault(answer: Answer) -> Answer:
        return Answer(302, {"Location": location}, b"")

    return fault


def with_header(name: str, value: str) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.headers[name] = value
        return answer

    return fault


def replaced(old: bytes, new: bytes) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.body = answer.body.replace(old, new)
        return answer

    return fault


def slow(pause: float, piece: int) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.pause, answer.piece = pause, piece
        return answer

    return fault


def held_at(count: int, release: threading.Event) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.hold_at, answer.release, answer.piece = count, release, 10_000
        return answer

    return fault

"""A reverse proxy in front of the local hub that does what bad networks and bad hubs do.

Rules are kept per piece of path, and used up in order or played always; what they change is in
`Answer`. With `signing`, file requests are sent on to signed URLs at a second origin, which expire.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_HOP = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})
_FILES = ("/resolve/", "FilePath=")  # in a file's URL, by dialect
_SIGNED = re.compile(r"/signed/(\d+)(/.*)\Z")
_TURN = 0.05  # seconds between two looks at whether the hub goes down


@dataclass
class Answer:
    """What the hub said; a fault changes it, or how it is sent."""

    status: int
    headers: dict[str, str]
    body: bytes
    send_only: int | None = None  # bytes of the body, then the connection is closed
    reset: bool = False  # … by RST
    wait: float = 0.0  # seconds before the first byte
    pause: float = 0.0  # seconds between pieces …
    pause_from: int = 0  # … from this byte on
    piece: int = 1 << 16
    hold_at: int | None = None  # wait here …
    hold_for: float = 20.0  # … this long at most …
    release: threading.Event = field(default_factory=threading.Event)  # … for this
    length_unknown: bool = False  # the end of the connection is the end of the body
    burns: bool = False  # the signed URL that was asked for is refused from now on


Fault = Callable[[Answer], Answer]


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]  # names in lower case
    connection: int  # the client's port
    method: str = "GET"
    at_storage: bool = False

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class FaultyHub:
    """Faults per piece of path, used up in order; None in a list means an honest answer."""

    upstream: str
    endpoint: str = ""
    storage: str = ""  # the second origin
    seen: list[Seen] = field(default_factory=list)
    faults: dict[str, list[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    without_range: bool = False
    signing: bool = False
    lifetime: float = 3600.0  # seconds that a signed URL may be used
    first_request: float | None = None  # when it came, by time.monotonic()
    sent: int = 0  # bytes of files' bodies
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _signed: list[float] = field(default_factory=list)  # when each URL expires

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for piece, queue in self.faults.items():
                if piece in path and queue:
                    return queue.pop(0)
            return next((fault for piece, fault in self.always.items() if piece in path), None)

    def heal(self) -> None:
        """Be honest from now on."""
        with self.lock:
            self.faults.clear()
            self.always.clear()
            self.without_range = False

    def requests(self, piece: str) -> list[Seen]:
        """The requests whose path has `piece` in it."""
        return [request for request in self.seen if piece in request.path]

    def sign(self, path: str) -> str:
        """A URL at the second origin that serves `path` for a while."""
        with self.lock:
            self._signed.append(time.monotonic() + self.lifetime)
            return f"{self.storage}/signed/{len(self._signed) - 1}{path}"

    def burn(self, number: int) -> None:
        """Let a signed URL expire now."""
        with self.lock:
            self._signed[number] = 0.0

    def count(self, amount: int) -> None:
        with self.lock:
            self.sent += amount

    def is_valid(self, number: int) -> bool:
        with self.lock:
            return number < len(self._signed) and time.monotonic() < self._signed[number]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        at_storage = self.server.is_storage
        hub.first_request = hub.first_request or time.monotonic()
        hub.seen.append(
            Seen(self.path, headers.copy(), self.client_address[1], self.command, at_storage)
        )
        path, number = self.path, None
        if at_storage:
            match = _SIGNED.match(path)
            if match is None or not hub.is_valid(int(match[1])):
                self._send(Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>"))
                return
            number, path = int(match[1]), match[2]
        if hub.without_range:
            headers.pop("range", None)
        if hub.signing and not at_storage and any(piece in path for piece in _FILES):
            self._send(self._redirect(path, headers))
            return
        answer = _ask(hub.upstream, self.command, path, headers)
        # a question about a file must not use up what was meant for the file
        fault = hub.fault_for(path) if self.command == "GET" else None
        answer = fault(answer) if fault else answer
        if answer.burns and number is not None:
            hub.burn(number)
        self._send(answer)

    def _redirect(self, path: str, headers: dict[str, str]) -> Answer:
        hub, kept = self.server.hub, {}
        if "/resolve/" in path:  # this dialect says what the file is where it redirects
            honest = _ask(hub.upstream, "HEAD", path, headers)
            kept = {k: v for k, v in honest.headers.items() if k.lower() != "content-length"}
        return Answer(302, kept | {"Location": hub.sign(path)}, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, answer: Answer) -> None:
        self._sleep(answer.wait)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.length_unknown:
            self.send_header("Connection", "close")
        elif not any(name.lower() == "content-length" for name in answer.headers):
            self.send_header("Content-Length", str(len(answer.body)))
        try:
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if answer.send_only is not None or answer.length_unknown:
            self.close_connection = True
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _send_body(self, answer: Answer) -> None:
        body = memoryview(answer.body)[: answer.send_only]
        position = 0
        while position < len(body) and not self.server.hub.closing.is_set():
            if answer.hold_at is not None and position >= answer.hold_at:
                self._hold(answer)
            slow = answer.pause and position >= answer.pause_from
            if slow or answer.hold_at is not None:
                end = position + answer.piece
            else:
                end = position + (answer.pause_from - position if answer.pause else 1 << 18)
            self.wfile.write(body[position:end])
            if any(mark in self.path for mark in _FILES):
                self.server.hub.count(len(body[position:end]))
            position = end
            if slow:
                self._sleep(answer.pause)
        self.wfile.flush()

    def _hold(self, answer: Answer) -> None:
        answer.hold_at = None  # once is enough
        end = time.monotonic() + answer.hold_for
        while time.monotonic() < end and not self.server.hub.closing.is_set():
            if answer.release.wait(_TURN):
                return

    def _sleep(self, seconds: float) -> None:
        if seconds:
            self.server.hub.closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: FaultyHub, *, is_storage: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.is_storage = hub, is_storage

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what these tests are about

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def faulty_hub(upstream: str) -> Iterator[FaultyHub]:
    """Run the proxy and its storage from threads until the block ends."""
    hub = FaultyHub(upstream)
    with _Server(hub) as server, _Server(hub, is_storage=True) as storage:
        hub.endpoint, hub.storage = server.endpoint, storage.endpoint
        with _serving([server, storage]):
            try:
                yield hub
            finally:
                hub.closing.set()


@contextmanager
def _serving(servers: Sequence[_Server]) -> Iterator[None]:
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
        for thread in threads:
            thread.join()


def _ask(upstream: str, method: str, path: str, headers: dict[str, str]) -> Answer:
    parts = urlsplit(upstream)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        passed = {name: value for name, value in headers.items() if name != "host"}
        connection.request(method, path, headers=passed)
        response = connection.getresponse()
        body = response.read()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in _HOP}
        if method == "HEAD":
            kept["Content-Length"] = response.getheader("Content-Length", "0")
        # Hugging Face's next page is an absolute URL; it is asked of this proxy, too
        if "Link" in kept and "host" in headers:
            kept["Link"] = kept["Link"].replace(parts.netloc, headers["host"])
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

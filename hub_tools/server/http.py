"""The local hub's HTTP floor: requests, routes, byte ranges, and file bodies sent by the kernel."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

from hub_tools.server.problems import Problem, Reason

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20
_JSON_LIMIT = 128 << 20  # inline commits carry files as base64
_DRAIN_LIMIT = 16 << 20  # an unread body up to this size is worth a kept connection
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,12}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d+)?\Z|\[[0-9A-Fa-f:.]+\](:\d+)?\Z")


class Body:
    """A request's body, read at most once and never past its end."""

    def __init__(self, source: BufferedIOBase, headers: Message) -> None:
        self._source = source
        self._chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
        self.length = None if self._chunked else _length(headers.get("Content-Length") or "0")
        self._left = self.length or 0
        self.finished = not self._chunked and self._left == 0

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; a connection that breaks off ends it early."""
        yield from self._from_chunks() if self._chunked else self._from_length()

    def _from_length(self) -> Iterator[bytes]:
        while self._left:
            data = self._source.read(min(_CHUNK, self._left))
            if not data:
                raise ConnectionError("the client went away in the middle of a body")
            self._left -= len(data)
            self.finished = self._left == 0
            yield data

    def _from_chunks(self) -> Iterator[bytes]:
        while size := _chunk_size(self._source.readline(64)):
            left = size
            while left:
                data = self._source.read(min(_CHUNK, left))
                if not data:
                    raise ConnectionError("the client went away in the middle of a body")
                left -= len(data)
                yield data
            self._source.readline(8)
        while self._source.readline(1024).strip():
            pass  # trailers
        self.finished = True

    def read(self, *, limit: int = _JSON_LIMIT) -> bytes:
        """Read a whole body of a known, modest size.

        Raises:
            Problem: TOO_LARGE.
        """
        if (self.length or 0) > limit:
            raise Problem(Reason.TOO_LARGE, f"the body is larger than {limit} bytes")
        data = bytearray()
        for chunk in self.chunks():
            data += chunk
            if len(data) > limit:
                raise Problem(Reason.TOO_LARGE, f"the body is larger than {limit} bytes")
        return bytes(data)

    def drain(self) -> bool:
        """Read what the answer did not need; False when that is too much."""
        if self.finished:
            return True
        if self.length is None or self._left > _DRAIN_LIMIT:
            return False
        for _ in self.chunks():
            pass
        return True


def _length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("Content-Length is no number")
    return int(text)


def _chunk_size(line: bytes) -> int:
    text = line.split(b";")[0].strip()
    if not _HEX.match(text):
        raise ConnectionError("the body's chunks are damaged")
    return int(text, 16)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its path still percent-encoded."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: Body
    origin: str  # scheme://host:port as the client wrote it

    def header(self, name: str) -> str:
        return str(self.headers.get(name) or "")

    def json(self) -> dict[str, Any]:
        """Parse the body as a JSON object.

        Raises:
            Problem: it is none.
        """
        return parse_object(self.body.read() or b"{}")


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object from a client.

    Raises:
        Problem: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(Reason.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Problem(Reason.BAD_REQUEST, "the body is not a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class FileBody:
    """Part of an open file; the server closes it."""

    file: BinaryIO
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; bodies are never compressed."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileBody = b""


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8")
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, {**kind, **(headers or {})}, body)


def file_response(
    request: Request, file: BinaryIO, *, size: int, headers: Mapping[str, str]
) -> Response:
    """Answer with a file, or the one range of it that was asked for.

    Raises:
        Problem: RANGE, when the range lies outside the file.
    """
    shared = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = _range(request, size, headers.get("ETag", ""))
    if wanted is None:
        return Response(200, shared, FileBody(file, 0, size))
    start, end = wanted
    if start >= size or start > end:
        file.close()
        total = {"Content-Range": f"bytes */{size}"}
        raise Problem(Reason.RANGE, f"the file has {size} bytes", headers=total)
    part = {"Content-Range": f"bytes {start}-{end}/{size}"}
    return Response(206, {**shared, **part}, FileBody(file, start, end - start + 1))


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """The first and last byte asked for; None for the whole file, as for ranges we do not know."""
    match = _RANGE.match(request.header("Range").strip())
    unchanged = request.header("If-Range") in ("", etag)
    if match is None or not unchanged or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:  # the last N bytes
        return max(size - int(last), 0) if int(last) else size, size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


Handler = Callable[[Request, Mapping[str, str]], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path such as `/api/models/{repo}/tree/{rev}/{path*}`.

    `{repo}` takes two segments, `{path*}` the rest, any other name one segment. Segments are split
    before they are decoded, so a revision may carry an encoded slash.
    """

    method: str
    pattern: str
    handler: Handler

    def compiled(self) -> re.Pattern[str]:
        text = re.sub(r"\{(\w+)(\*?)\}", self._group, self.pattern)
        return re.compile(text + r"\Z")

    @staticmethod
    def _group(match: re.Match[str]) -> str:
        name, rest = match.groups()
        inner = ".*" if rest else "[^/]+/[^/]+" if name == "repo" else "[^/]+"
        return f"(?P<{name}>{inner})"


class Router:
    """Finds the handler of a request; HEAD is answered by GET's."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = [(route.method, route.compiled(), route.handler) for route in routes]

    def __call__(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, handler in self._routes:
            if wanted == method and (match := pattern.match(request.path)):
                values = match.groupdict()
                return handler(request, {key: _decoded(text) for key, text in values.items()})
        raise Problem(Reason.ROUTE_NOT_FOUND, f"{request.method} {request.path} is not served here")


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise Problem(Reason.BAD_REQUEST, "the path is not UTF-8") from error


class HttpServer(ThreadingHTTPServer):
    """One thread per connection; `answer` must turn every refusal into a response."""

    daemon_threads = False  # server_close waits for them
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        self._live: set[socket.socket] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Connection)

    @property
    def endpoint(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._live.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._live.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening and hang up: an idle kept connection must not outlive its server."""
        for connection in list(self._live):
            with suppress(OSError):  # its client may have been faster
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            _log.debug("%s went away", client_address)
        else:
            _log.exception("a request from %s failed", client_address)

    def server_bind(self) -> None:
        # the base class asks DNS for this machine's name, which can take seconds
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Connection(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version = "modelferry-hub"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 120  # idle connections and stalled uploads

    def _serve(self) -> None:
        try:
            request = self._request()
        except ValueError:
            self.close_connection = True
            return self.send_error(400)
        try:
            self._send(request, self.server.answer(request))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  http.server's names

    def _request(self) -> Request:
        parts = urlsplit(self.path)
        host = self.headers.get("Host") or ""
        origin = f"http://{host}" if _HOST.match(host) else self.server.endpoint
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = Body(self.rfile, self.headers)
        return Request(self.command, parts.path, query, self.headers, body, origin)

    def _send(self, request: Request, response: Response) -> None:
        body = response.body
        try:
            if not request.body.drain():
                self.close_connection = True
            self.send_response(response.status)
            for name, value in response.headers.items():
                # names out of a URL may end up here: no line break of theirs ends this header
                text = _CONTROL.sub(" ", value).encode("utf-8", "replace").decode("latin-1")
                self.send_header(name, text)
            count = body.count if isinstance(body, FileBody) else len(body)
            self.send_header("Content-Length", str(count))
            self.send_header("X-Content-Type-Options", "nosniff")
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if request.method != "HEAD":
                self._send_body(body)
        finally:
            if isinstance(body, FileBody):
                body.file.close()

    def _send_body(self, body: bytes | FileBody) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body)
        elif body.count:
            # socket.sendfile is os.sendfile with the socket's timeout respected
            sent = self.connection.sendfile(body.file, body.start, body.count)
            if sent != body.count:  # the file shrank; a short body must not look complete
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("%s " + format, self.address_string(), *args)

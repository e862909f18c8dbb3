"""HTTP for hubs: pooled, retried, and a token never reaches another origin.

Redirects are followed by hand: an origin is scheme, host and port, because cookies and tokens that
ignore the port leak to whatever else listens on the same host.
"""

from __future__ import annotations

import json
import logging
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util.ssl_match_hostname import CertificateError

from hub_tools.connections import ConnectionPools
from hub_tools.errors import HubProtocolError, HubUnreachableError
from hub_tools.origins import Origin, shown_url
from hub_tools.retries import RetryPolicy, retry_after
from hub_tools.settings import Network, Secret
from hub_tools.unpacking import Unpacker
from model_store.canonical import parse_json
from model_store.errors import StoreError
from model_store.manifest import tool_version

log = logging.getLogger(__name__)

Body = bytes | Callable[[], IO[bytes]]
AuthHeaders = Callable[[Secret], Mapping[str, str]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# these say that the request was not worked on, so even a POST may be sent again
_RETRIED_ALWAYS = frozenset({429, 503})
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
UNPACKED = frozenset({"gzip", "x-gzip", "deflate"})  # content encodings of streams that we undo
_MOST_REDIRECTS = 5
_LONGEST_SKIPPED = 64 << 10
_ANSWER_PIECE = 1 << 18
_LARGEST_ANSWER = 256 << 20  # of an API call; files are streamed


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; header names are matched without case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str  # where it came from in the end

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Parse the body.

        Raises:
            HubProtocolError: not JSON.
        """
        try:
            return parse_json(self.body, name=f"the answer of {shown_url(self.url)}")
        except StoreError as error:
            raise HubProtocolError(str(error)) from error


class Stream:
    """A body that is read as it arrives."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url = url
        self._unpacker: Unpacker | None = None

    def unpack(self) -> None:
        """Undo the body's compression from now on."""
        self._unpacker = Unpacker(self._arrived)

    def read(self, amount: int) -> bytes:
        """Return what has arrived, at most `amount` bytes; b"" at the end.

        Raises:
            HubUnreachableError: the connection broke, nothing came in time, or what came cannot be
                unpacked.
        """
        if self._unpacker is None:
            return self._arrived(amount)
        try:
            return self._unpacker.read(amount)
        except zlib.error as error:
            raise HubUnreachableError("a compressed body is damaged") from error

    def _arrived(self, amount: int) -> bytes:
        try:
            return self._response.read1(amount, decode_content=False)
        except (HTTPError, OSError, ValueError) as error:
            # ValueError: another thread aborted the stream in the middle of this read
            raise HubUnreachableError(
                f"the connection to {Origin.of(self.url).host} broke: {_reason(error)}"
            ) from error

    def abort(self) -> None:
        """Make a read that waits in another thread return; never raises."""
        try:
            self._response.shutdown()
        except (OSError, ValueError, RuntimeError, HTTPError):
            log.debug("stream was closed already")


@dataclass(slots=True)
class Http:
    """Talks to one hub; other origins that it redirects to get no token.

    Args:
        endpoint: the hub's address.
        network: proxies and CA bundle.
        token: sent to the endpoint's origin only.
        auth: makes the headers that carry the token.
        retry: waiting and trying again.
        pool_size: connections kept open per host.
    """

    endpoint: str
    network: Network
    token: Secret | None = None
    auth: AuthHeaders = lambda token: {"Authorization": f"Bearer {token.reveal()}"}
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    pool_size: int = 64
    _pools: ConnectionPools = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pools = ConnectionPools(self.network, size=self.pool_size)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json_body: Any = None,
        body: Body | None = None,
        idempotent: bool | None = None,
        read: Callable[[Iterator[bytes]], bytes] = b"".join,
    ) -> Reply:
        """Send one API request and read the whole answer; any status is returned, not raised.

        Args:
            method: GET, HEAD, POST, …
            url: absolute, or a path below the endpoint that starts with a slash.
            headers: without the token, which is added here.
            json_body: sent as JSON.
            body: sent as it is; a callable is opened anew for each try and must come with a
                Content-Length header.
            idempotent: whether it may be sent again after it may have been worked on; default by
                method.
            read: makes the reply's body of what arrives.

        Raises:
            HubUnreachableError: no answer after all tries.
            HubProtocolError: a redirect that must not be followed, or an endless answer.
        """
        sent = dict(headers or {})
        if json_body is not None:
            sent["Content-Type"] = sent.get("Content-Type", "application/json")
            body = json.dumps(json_body).encode()
        again = method in _IDEMPOTENT if idempotent is None else idempotent
        for attempt in range(self.retry.attempts):
            last = attempt + 1 == self.retry.attempts
            try:
                patience = self.retry.read_timeout
                with self._opened(method, url, sent, body, patience) as (response, final):
                    body_read = read(_chunks(response))
                    reply = Reply(response.status, response.headers, body_read, final)
            except HubUnreachableError as error:
                if last or is_hopeless(error) or not (again or isinstance(error, _NeverSentError)):
                    raise
                self._wait(attempt, f"{error}", None)
                continue
            retried = _RETRIED if again else _RETRIED_ALWAYS
            asked = retry_after(reply.headers)
            if last or reply.status not in retried or (asked or 0) > self.retry.longest_retry_after:
                return reply
            self._wait(attempt, f"{shown_url(reply.url)} answered {reply.status}", asked)
        raise AssertionError("unreachable")

    @contextmanager
    def stream(self, url: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
        """GET a body to read as it comes; one try, any status.

        Raises:
            HubUnreachableError: no answer.
            HubProtocolError: a redirect that must not be followed.
        """
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        patience = min(self.retry.stall_timeout, self.retry.read_timeout)
        with self._opened("GET", url, sent, None, patience) as (response, final):
            yield Stream(response, final)

    def absolute(self, url: str) -> str:
        """The URL of a path below the endpoint; an absolute URL stays as it is."""
        return self.endpoint + url if url.startswith("/") else url

    def is_own(self, url: str) -> bool:
        """Whether a URL has the endpoint's origin, and so may see the token."""
        return Origin.of(url) == Origin.of(self.endpoint)

    def close(self) -> None:
        """Close idle connections."""
        self._pools.close()

    @contextmanager
    def _opened(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: float,
    ) -> Iterator[tuple[urllib3.BaseHTTPResponse, str]]:
        url = self.absolute(url)
        for _ in range(_MOST_REDIRECTS + 1):
            response = self._send(method, url, headers, body, patience)
            target = _redirect_target(response, url)
            if target is None:
                try:
                    yield response, url
                finally:
                    # an unread rest would cost more than a new connection
                    response.close()
                return
            _leave(response)
            self._check_redirect(method, response.status, url, target)
            url = target
        raise HubProtocolError(f"{shown_url(url)}: too many redirects")

    def _check_redirect(self, method: str, status: int, url: str, target: str) -> None:
        if Origin.of(url).scheme == "https" and Origin.of(target).scheme == "http":
            raise HubProtocolError(f"{shown_url(url)} redirects to plain http: refused")
        if method not in ("GET", "HEAD") and (
            status not in (307, 308) or Origin.of(url) != Origin.of(target)
        ):
            raise HubProtocolError(f"{shown_url(url)} redirects a {method}: refused")

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: float,
    ) -> urllib3.BaseHTTPResponse:
        own = self.is_own(url)
        sent = {"User-Agent": user_agent(), "Accept-Encoding": "identity"}
        sent |= {
            name: value
            for name, value in headers.items()
            if own or name.lower() not in _SECRET_HEADERS
        }
        if own and self.token is not None:
            sent |= self.auth(self.token)
        payload = body() if callable(body) else body
        try:
            return self._pools.for_url(url).request(
                method,
                url,
                headers=sent,
                body=payload,
                retries=False,
                redirect=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=self.retry.connect_timeout, read=patience),
            )
        except (HTTPError, OSError) as error:
            if _is_about_certificate(error):
                raise HubUnreachableError(
                    f"{_place(url)}: the certificate was not accepted", hint=_CERTIFICATE
                ) from error
            kind = _NeverSentError if _is_never_sent(error) else HubUnreachableError
            raise kind(f"no answer from {_place(url)}: {_reason(error)}") from error
        finally:
            if payload is not None and not isinstance(payload, bytes):
                payload.close()

    def _wait(self, attempt: int, why: str, asked: float | None) -> None:
        delay = self.retry.delay(attempt, asked)
        log.info("%s; trying again in %.1f s", why, delay)
        time.sleep(delay)


_CERTIFICATE = (
    "Where the network has a certificate authority of its own, set REQUESTS_CA_BUNDLE to its file;"
    " otherwise somebody may be in between."
)


class _NeverSentError(HubUnreachableError):
    """No connection was made, so nothing was worked on."""


@cache
def user_agent() -> str:
    """`modelferry/<version>`, without anything about the machine."""
    name, _, version = tool_version().partition(" ")
    return f"{name}/{version if version[:1].isdigit() else '0'}"


def _redirect_target(response: urllib3.BaseHTTPResponse, url: str) -> str | None:
    location = response.headers.get("Location")
    if response.status not in _REDIRECTS or not location:
        return None
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise HubProtocolError(f"{shown_url(url)} redirects to no URL") from error


def _leave(response: urllib3.BaseHTTPResponse) -> None:
    """Skip a redirect's body; a long one costs the connection instead."""
    length = response.headers.get("Content-Length", "")
    if length.isascii() and length.isdigit() and int(length) <= _LONGEST_SKIPPED:
        response.drain_conn()
    response.close()


def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    size = 0
    try:
        while chunk := response.read(_ANSWER_PIECE, decode_content=True):
            size += len(chunk)
            if size > _LARGEST_ANSWER:
                raise HubProtocolError(f"an answer is larger than {_LARGEST_ANSWER >> 20} MiB")
            yield chunk
    except (HTTPError, OSError) as error:
        raise HubUnreachableError(f"an answer broke off: {_reason(error)}") from error


def is_hopeless(error: HubUnreachableError) -> bool:
    """Whether another try would fail the same way: a certificate that is not accepted."""
    return error.__cause__ is not None and _is_about_certificate(error.__cause__)


def _is_about_certificate(error: BaseException) -> bool:
    # a TLS connection may also just break, and that is worth another try
    cause = error.reason if isinstance(error, MaxRetryError) else error
    inner = (cause, *getattr(cause, "args", ()))
    return any(isinstance(each, ssl.SSLCertVerificationError | CertificateError) for each in inner)


def _is_never_sent(error: Exception) -> bool:
    cause = error.reason if isinstance(error, MaxRetryError) else error
    return isinstance(
        cause,
        urllib3.exceptions.NewConnectionError
        | urllib3.exceptions.ConnectTimeoutError
        | urllib3.exceptions.ProxyError,
    )


def _place(url: str) -> str:
    origin = Origin.of(url)
    return f"{origin.scheme}://{origin.host}:{origin.port}"


def _reason(error: BaseException) -> str:
    # urllib3's own texts repeat the whole URL, query included; its classes say enough
    cause = error.__cause__ or error.__context__
    inner = cause if isinstance(cause, OSError) else error
    text = getattr(inner, "strerror", None) if isinstance(inner, OSError) else None
    return str(text) if text else _NAMES.get(type(error).__name__, type(error).__name__)


_NAMES = {
    "NameResolutionError": "the host name is unknown",
    "NewConnectionError": "the connection was refused",
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "nothing came in time",
    "ProtocolError": "the connection was closed",
    "IncompleteRead": "the body is too short",
    "SSLError": "the TLS connection failed",
    "ProxyError": "the proxy did not let us through",
}

"""Fetch a picture by its http(s) address, under rules that a hostile address cannot bend.

The name is resolved once, every address it has must be public, and the connection goes to the
address that was checked; a redirect starts over. Proxies and credentials are not used.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from qwen_vl.errors import ImageFetchError, ImageNotAllowedError

Resolve = Callable[[str, int], Sequence[str]]
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 2**16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def system_resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows for a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@dataclass(frozen=True, slots=True)
class HttpRules:
    """What may be fetched.

    Attributes:
        max_bytes: longest body.
        max_redirects: each is checked like the first address.
        seconds: for connecting, for each read, and six times that for all of it.
        private_hosts: `host:port` that may have a private address.
        resolve: host and port to addresses.
    """

    max_bytes: int = 32 * 2**20
    max_redirects: int = 3
    seconds: float = 10.0
    private_hosts: frozenset[str] = frozenset()
    resolve: Resolve = system_resolve


@dataclass(frozen=True, slots=True)
class _Target:
    """An address whose host was resolved and checked."""

    scheme: str
    host: str
    port: int
    ip: str
    path: str

    @property
    def host_header(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return name if self.port == usual else f"{name}:{self.port}"


def fetch_image_bytes(url: str, rules: HttpRules) -> bytes:
    """The body behind an address.

    Raises:
        ImageNotAllowedError: not http(s), with credentials, or a private address.
        ImageFetchError: no connection, no success, too many redirects, too long or too slow.
    """
    deadline = time.monotonic() + 6 * rules.seconds
    for _ in range(rules.max_redirects + 1):
        found = _get(_checked(url, rules), rules, deadline)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ImageFetchError(f"more than {rules.max_redirects} redirects")


def _checked(url: str, rules: HttpRules) -> _Target:
    try:
        parts = urlsplit(url)
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise ImageNotAllowedError("the image's address is malformed") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ImageNotAllowedError("an image's address must be plain http(s), without credentials")
    port = given or (443 if parts.scheme == "https" else 80)
    try:
        addresses = list(rules.resolve(host, port))
    except (OSError, UnicodeError) as error:
        raise ImageFetchError(f"{host!r} cannot be resolved") from error
    if not addresses:
        raise ImageFetchError(f"{host!r} has no address")
    if f"{host}:{port}" not in rules.private_hosts and not all(map(_is_public, addresses)):
        raise ImageNotAllowedError(
            f"{host!r} is a private address", hint="Download the picture and name the file."
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme, host, port, addresses[0], path)


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    # IPv6 can carry an IPv4 address that somebody on the way unpacks
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    tunnelled = ip.version == 6 and (ip.teredo is not None or ip in _NAT64)
    one = inner or ip
    return not tunnelled and one.is_global and not one.is_multicast


def _get(target: _Target, rules: HttpRules, deadline: float) -> bytes | str:
    """The body, or where a redirect points."""
    timeout = urllib3.Timeout(connect=rules.seconds, read=rules.seconds)
    with _pool(target, timeout) as pool:
        try:
            response = pool.request(
                "GET",
                _quoted(target.path),
                headers={"Host": target.host_header, "Accept": "image/*", "User-Agent": "qwen_vl"},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,  # a body that unpacks to more than it says is refused
            )
            with response:
                return _body(response, rules, deadline)
        except (HTTPError, OSError) as error:
            raise ImageFetchError(
                f"{target.host!r} did not send it: {type(error).__name__}"
            ) from error


def _pool(target: _Target, timeout: urllib3.Timeout) -> urllib3.HTTPConnectionPool:
    if target.scheme == "http":
        return urllib3.HTTPConnectionPool(target.ip, target.port, timeout=timeout)
    # to the address that was checked, and with the certificate of the name
    return urllib3.HTTPSConnectionPool(
        target.ip,
        target.port,
        timeout=timeout,
        cert_reqs="CERT_REQUIRED",
        assert_hostname=target.host,
        server_hostname=target.host,
    )


def _quoted(path: str) -> str:
    # no control character or space may reach the request line
    return "".join(c if "!" <= c <= "~" else "".join(f"%{b:02X}" for b in c.encode()) for c in path)


def _body(response: urllib3.BaseHTTPResponse, rules: HttpRules, deadline: float) -> bytes | str:
    if response.status in _REDIRECTS:
        location = response.headers.get("Location")
        if not location:
            raise ImageFetchError("a redirect leads nowhere")
        return location
    if response.status != 200:
        raise ImageFetchError(f"the server answered {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ImageFetchError("the server sent it compressed, which was not asked for")
    body = bytearray()
    for chunk in response.stream(_CHUNK):
        body += chunk
        if len(body) > rules.max_bytes:
            raise ImageFetchError(f"the picture is over {rules.max_bytes} bytes")
        if time.monotonic() > deadline:
            raise ImageFetchError("the picture takes too long")
    return bytes(body)

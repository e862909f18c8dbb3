"""HTTPS and a CONNECT proxy on this machine, with certificates of an authority made for a test."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PIECE = 1 << 16


@dataclass(frozen=True)
class Authority:
    """Files of a certificate authority, and of a server that it vouches for."""

    bundle: Path
    certificate: Path
    key: Path


def make_authority(folder: Path, *, address: str = "127.0.0.1") -> Authority:
    """Make an authority and a certificate for `address`."""
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("test authority", root_key, None, root_key, extension=_is_authority())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    leaf = _certificate("test hub", key, root, root_key, extension=names)
    files = Authority(folder / "ca.pem", folder / "hub.pem", folder / "hub.key")
    files.bundle.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return files


def _is_authority() -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=True, path_length=None)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    signing: ec.EllipticCurvePrivateKey,
    *,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=issuer is None)
        .sign(signing, hashes.SHA256())
    )


@dataclass
class Front:
    """Something that listens, and what it was told."""

    endpoint: str = ""
    heads: list[str] = field(default_factory=list)  # of requests that it could read


@contextmanager
def https_front(upstream: str, authority: Authority) -> Iterator[Front]:
    """Speak TLS for a plain server, whose `Host` the client's requests keep."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    parts = urlsplit(upstream)
    target = (parts.hostname or "", parts.port or 0)

    def serve(client: socket.socket, front: Front) -> None:
        with context.wrap_socket(client, server_side=True) as secure:
            _join(secure, target)

    with _listening(serve, "https") as front:
        yield front


@contextmanager
def connect_proxy() -> Iterator[Front]:
    """A proxy that opens tunnels, and reads no further than its own request's head."""

    def serve(client: socket.socket, front: Front) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1) or b"\r\n\r\n"
        text = head.decode()
        front.heads.append(text)
        method, place, _ = text.split(" ", 2)
        host, _, port = place.rpartition(":")
        if method != "CONNECT":
            client.sendall(b"HTTP/1.1 405 Tunnels only\r\nContent-Length: 0\r\n\r\n")
            return
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        _join(client, (host, int(port)))

    with _listening(serve, "http") as front:
        yield front


@contextmanager
def _listening(serve: Callable[[socket.socket, Front], None], scheme: str) -> Iterator[Front]:
    front = Front()

    def guarded(client: socket.socket) -> None:
        with closing(client), suppress(OSError):  # a client that likes no certificate goes away
            serve(client, front)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=guarded, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        front.endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield front
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _join(client: socket.socket, target: tuple[str, int]) -> None:
    """Pass bytes both ways until either side ends."""
    with socket.create_connection(target) as server:
        back = threading.Thread(target=_pass, args=(server, client), daemon=True)
        back.start()
        _pass(client, server)
        back.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)

"""A TCP proxy with the delays and rates of a CDN, in front of any server.

It knows nothing of HTTP: what a client sends at once is a request, which waits for `--delay`; what
comes back is paced, each connection to `--rate`, and all of them together to `--total-rate`. The
kernel moves the bytes (splice), so that the proxy costs the machine little.

Examples:
  python benchmarks/shaping_proxy.py 127.0.0.1:8710 --delay 0.05 --rate 20e6
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

_PIECE = 1 << 18
_REQUEST = 1 << 16


@dataclass
class Pace:
    """Lets `rate` bytes per second pass; zero is no limit."""

    rate: float
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self, count: int) -> None:
        """Wait until `count` more bytes may have passed."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            # what was not used for a tenth of a second is lost
            self._next = max(self._next, now - 0.1) + count / self.rate
            ready = self._next
        if ready > now:
            time.sleep(ready - now)


@dataclass(frozen=True, slots=True)
class Shape:
    """How slow everything is."""

    delay: float  # seconds per request
    rate: float  # bytes per second and connection
    total: Pace


def serve(upstream: tuple[str, int], shape: Shape) -> None:
    """Accept connections for ever; the address is printed first."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        while True:
            client, _ = listening.accept()
            threading.Thread(target=_join, args=(client, upstream, shape), daemon=True).start()


def _join(client: socket.socket, upstream: tuple[str, int], shape: Shape) -> None:
    with closing(client), suppress(OSError), socket.create_connection(upstream) as server:
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = threading.Thread(target=_pass_answers, args=(server, client, shape), daemon=True)
        answers.start()
        _pass_requests(client, server, shape)
        answers.join()


def _pass_requests(client: socket.socket, server: socket.socket, shape: Shape) -> None:
    with suppress(OSError):
        while request := client.recv(_REQUEST):
            time.sleep(shape.delay)
            server.sendall(request)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)


def _pass_answers(server: socket.socket, client: socket.socket, shape: Shape) -> None:
    pace = Pace(shape.rate)
    reading, writing = os.pipe()
    try:
        while count := os.splice(server.fileno(), writing, _PIECE):
            pace.wait(count)
            shape.total.wait(count)
            while count:
                count -= os.splice(reading, client.fileno(), count)
    except OSError:
        # whoever went away first, the other one has to know
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    finally:
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        os.close(reading)
        os.close(writing)


def main() -> int:
    """Run until killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("upstream", help="host:port")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds per request")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes per second and connection")
    parser.add_argument("--total-rate", type=float, default=0.0, help="bytes per second in all")
    args = parser.parse_args()
    host, _, port = args.upstream.rpartition(":")
    with suppress(KeyboardInterrupt):
        serve((host, int(port)), Shape(args.delay, args.rate, Pace(args.total_rate)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

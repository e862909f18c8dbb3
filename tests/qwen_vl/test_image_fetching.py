import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from qwen_vl.errors import ImageError, ImageFetchError, ImageNotAllowedError, NotAnImageError
from qwen_vl.image_fetching import HttpRules, fetch_image_bytes
from qwen_vl.image_sources import open_image
from tests.qwen_vl.test_image_sources import png, png_header

Answer = Callable[[BaseHTTPRequestHandler], None]


def _send(handler: BaseHTTPRequestHandler, body: bytes, **headers: str) -> None:
    handler.send_response(int(headers.pop("status", "200")))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    # who was refused may have gone already
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


ANSWERS: dict[str, Answer] = {
    "/a.png": lambda h: _send(h, png(), Content_Length=str(len(png()))),
    "/no": lambda h: _send(h, b"", status="404"),
    "/long": lambda h: _send(h, bytes(200_000)),
    "/lies": lambda h: _send(h, bytes(200_000), Content_Length="10000000"),
    "/packed": lambda h: _send(h, png(), Content_Encoding="gzip"),
    "/bomb": lambda h: _send(h, png_header(60_000, 60_000)),
    "/text": lambda h: _send(h, b"root:x:0:0:", Content_Type="image/png"),
    "/there": lambda h: _send(h, b"", status="302", Location="/a.png"),
    "/round": lambda h: _send(h, b"", status="302", Location="/round"),
    "/nowhere": lambda h: _send(h, b"", status="302"),
    "/file": lambda h: _send(h, b"", status="302", Location="file:///etc/passwd"),
    "/inside": lambda h: _send(h, b"", status="302", Location="http://metadata.test/latest"),
    "/q?x=1%20y": lambda h: _send(h, png()),
}


class Site:
    """A local server, known under a public name."""

    def __init__(self, port: int, hosts: list[str | None]) -> None:
        self.port, self.hosts = port, hosts
        self.asked: list[str] = []

    def rules(self, **more: Any) -> HttpRules:
        known = {"pictures.test": ["127.0.0.1"], "metadata.test": ["169.254.169.254"]}

        def resolve(host: str, port: int) -> Sequence[str]:
            self.asked.append(host)
            return known[host]

        trusted = frozenset({f"pictures.test:{self.port}"})
        return HttpRules(private_hosts=trusted, resolve=resolve, seconds=2, **more)

    def url(self, path: str) -> str:
        return f"http://pictures.test:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    hosts: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers.get("Host"))
            ANSWERS[self.path](self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield Site(server.server_address[1], hosts)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_is_fetched_under_its_own_name(site: Site) -> None:
    image = open_image(site.url("/a.png"), http=site.rules())

    assert image.size == (3, 2)
    assert site.hosts == [f"pictures.test:{site.port}"]


@pytest.mark.parametrize("path", ["/there", "/q?x=1%20y", "/q?x=1 y"])
def test_redirects_and_queries_are_followed(site: Site, path: str) -> None:
    assert fetch_image_bytes(site.url(path), site.rules()) == png()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/no", ImageFetchError),
        ("/long", ImageFetchError),
        ("/lies", ImageFetchError),
        ("/packed", ImageFetchError),
        ("/bomb", NotAnImageError),
        ("/text", NotAnImageError),
        ("/round", ImageFetchError),
        ("/nowhere", ImageFetchError),
        ("/file", ImageNotAllowedError),
        ("/inside", ImageNotAllowedError),
    ],
)
def test_what_a_server_may_not_do(site: Site, path: str, error: type[ImageError]) -> None:
    with pytest.raises(error) as caught:
        open_image(site.url(path), http=site.rules(max_bytes=100_000))

    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_name_is_resolved_once_for_each_request(site: Site) -> None:
    fetch_image_bytes(site.url("/there"), site.rules())

    assert site.asked == ["pictures.test", "pictures.test"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1",
        "64:ff9b::7f00:1", "x",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(address: str) -> None:
    rules = HttpRules(resolve=lambda host, port: ["93.184.216.34", address])

    with pytest.raises(ImageNotAllowedError, match="private"):
        fetch_image_bytes("http://pictures.test/a.png", rules)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://localhost/a.png", "http://[::1]/a.png",
        "http://2130706433/a.png", "http://0x7f.1/a.png", "http://user:pw@127.0.0.1/a.png",
        "http:///a.png", "http://[::1/a.png", "http://127.0.0.1:99999/a.png",
        "http://127.0.0.1\t/a.png",
    ],
)  # fmt: skip
def test_this_machine_is_refused_by_default_however_it_is_spelt(url: str, site: Site) -> None:
    with pytest.raises(ImageNotAllowedError):
        open_image(url.replace("/a.png", f":{site.port}/a.png", 1), http=HttpRules())

    assert site.hosts == []


def test_a_name_that_means_nothing_is_an_error() -> None:
    def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    with pytest.raises(ImageFetchError, match="resolved"):
        fetch_image_bytes("https://nowhere.test/a.png", HttpRules(resolve=resolve))
    with pytest.raises(ImageFetchError, match="no address"):
        fetch_image_bytes("https://x.test/", HttpRules(resolve=lambda host, port: []))


def test_nothing_is_fetched_unless_it_is_allowed(site: Site) -> None:
    with pytest.raises(ImageNotAllowedError, match="network"):
        open_image(site.url("/a.png"))

    assert site.hosts == []


def test_a_fetched_picture_is_a_picture_like_any_other(site: Site) -> None:
    from qwen_vl.dialogue import chat_inputs
    from tests.qwen_vl.text_goldens import published_tokenizer

    query = [{"image": site.url("/a.png")}, {"text": "?"}]

    inputs = chat_inputs(published_tokenizer(), query, image_size=28, http=site.rules())

    file = io.BytesIO(png())
    assert inputs.images[0].tobytes() == Image.open(file).tobytes()

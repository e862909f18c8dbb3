import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_tools.errors import HubProtocolError, HubUnreachableError
from hub_tools.http import Http
from hub_tools.modelscope import modelscope_client
from hub_tools.origins import Origin, shown_url
from hub_tools.retries import RetryPolicy, retry_after
from hub_tools.server.app import running_hub
from hub_tools.settings import HubAccess, Network, Secret
from tests.hub_tools.checkpoints import FILES, IMPATIENT, write_files
from tests.hub_tools.faulty_hub import Answer, FaultyHub, faulty_hub, redirected, refused

TOKEN = "secret-token-123"
URL = "/qwen/tiny/resolve/main/config.json"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


def reach(hub: FaultyHub, *, retry: RetryPolicy = IMPATIENT) -> Http:
    return Http(hub.endpoint, Network({}), Secret(TOKEN), retry=retry)


def test_an_origin_is_scheme_host_and_port() -> None:
    assert Origin.of("https://a/x") == Origin.of("https://A:443/y")
    assert Origin.of("https://a") != Origin.of("http://a")
    assert Origin.of("http://a:1") != Origin.of("http://a:2")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://", "http://[", "http://a:x", "a/b"])
def test_what_is_no_http_url_has_no_origin(url: str) -> None:
    with pytest.raises(HubProtocolError):
        Origin.of(url)


def test_messages_show_no_password_and_no_signature() -> None:
    assert shown_url("https://u:p@host/x?sig=abc#f") == "https://host/x?…"


def test_a_redirect_on_the_same_origin_keeps_the_token(hub: FaultyHub) -> None:
    hub.faults["config.json"] = [redirected("/qwen/tiny/resolve/main/README.md")]

    reply = reach(hub).request("GET", URL)

    assert reply.body == FILES["README.md"]
    assert [seen.headers["authorization"] for seen in hub.seen] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("streamed", [True, False])
def test_a_redirect_to_another_port_takes_neither_token_nor_cookie(
    hub: FaultyHub, streamed: bool
) -> None:
    with faulty_hub(hub.upstream) as other:
        hub.faults["FilePath=config.json"] = [redirected(other.endpoint + URL)]
        access = HubAccess(hub.endpoint, Secret(TOKEN))
        http = modelscope_client(access, Network({}), IMPATIENT).http
        url = "/api/v1/models/qwen/tiny/repo?Revision=master&FilePath=config.json"

        if streamed:
            with http.stream(url) as stream:
                body = stream.read(1000)
        else:
            body = http.request("GET", url, headers={"cookie": "a=b"}).body

    assert body == FILES["config.json"]
    assert hub.seen[0].headers["cookie"] == f"m_session_id={TOKEN}"
    assert hub.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert {"authorization", "cookie"}.isdisjoint(other.seen[0].headers)
    assert TOKEN not in str(other.seen)


def test_a_cookie_that_a_hub_sets_goes_nowhere(hub: FaultyHub) -> None:
    with faulty_hub(hub.upstream) as other:

        def moved(answer: Answer) -> Answer:
            headers = {"Set-Cookie": "session=abc; Path=/", "Location": other.endpoint + URL}
            return Answer(302, headers, b"")

        hub.faults["config.json"] = [moved]
        http = reach(hub)

        first, second = http.request("GET", URL), http.request("GET", URL)

    assert first.body == second.body == FILES["config.json"]
    assert len(other.seen) == 1
    assert all("cookie" not in seen.headers for seen in [*hub.seen, *other.seen])


def test_an_endless_redirect_ends(hub: FaultyHub) -> None:
    hub.always["config.json"] = redirected(URL)

    with pytest.raises(HubProtocolError, match="too many redirects"):
        reach(hub).request("GET", URL)


def test_a_post_is_not_redirected(hub: FaultyHub) -> None:
    http = reach(hub)

    with pytest.raises(HubProtocolError, match="redirects a POST"):
        http._check_redirect("POST", 302, f"{hub.endpoint}/a", f"{hub.endpoint}/b")
    with pytest.raises(HubProtocolError, match="plain http"):
        http._check_redirect("GET", 302, "https://hub/a", "http://hub/a")


def test_a_busy_hub_is_asked_again_when_it_said(
    hub: FaultyHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults["config.json"] = [refused(429, Retry_After="0"), refused(503)]
    caplog.set_level(logging.DEBUG)

    reply = reach(hub, retry=RetryPolicy(attempts=3, first_delay=0.01)).request("GET", URL)

    assert reply.body == FILES["config.json"]
    assert len(hub.seen) == 3
    assert TOKEN not in caplog.text


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub: FaultyHub) -> None:
    hub.always["config.json"] = refused(429, Retry_After="3600")

    reply = reach(hub).request("GET", URL)

    assert reply.status == 429
    assert len(hub.seen) == 1


def test_both_ways_to_ask_for_patience_are_understood() -> None:
    assert retry_after({"Retry-After": "7"}) == 7
    assert retry_after({"RateLimit": '"api";r=0;t=55'}) == 55
    assert retry_after({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert retry_after({"Retry-After": "-1"}) is None


def test_a_hub_that_is_down_is_named_without_the_query() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        http = Http(f"http://127.0.0.1:{port}", Network({}), Secret(TOKEN), retry=IMPATIENT)

        with pytest.raises(HubUnreachableError) as caught:
            http.request("GET", "/x?sig=abc")

    assert str(port) in str(caught.value)
    assert "abc" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_request_goes_through_the_proxy_without_the_token_in_its_headers(hub: FaultyHub) -> None:
    http = Http("http://hub.invalid", Network({"http": hub.endpoint}), retry=IMPATIENT)

    http.request("GET", "/config.json")

    assert hub.seen[0].path == "http://hub.invalid/config.json"

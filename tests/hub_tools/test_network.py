"""Certificates, bundles and proxies as an environment sets them, with real TLS on this machine."""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hub_tools.errors import HubUnreachableError
from hub_tools.hubs import Surroundings
from hub_tools.server.app import running_hub
from hub_tools.settings import load_settings
from hub_tools.snapshots import download_snapshot
from model_store.places import Home
from tests.hub_tools.checkpoints import FILES, IMPATIENT, REPO, contents, write_files
from tests.hub_tools.faulty_hub import FaultyHub, faulty_hub
from tests.hub_tools.secure_front import (
    Authority,
    Front,
    connect_proxy,
    https_front,
    make_authority,
)

TOKEN = "a-token-for-the-hub-only"
HUBS = pytest.mark.parametrize("hub_name", ["modelscope", "huggingface"])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    write_files(tmp_path / "hub" / "qwen" / "tiny", FILES)
    with running_hub(tmp_path / "hub") as upstream, faulty_hub(upstream.endpoint) as proxy:
        yield proxy


@pytest.fixture
def front(hub: FaultyHub, authority: Authority) -> Iterator[Front]:
    with https_front(hub.endpoint, authority) as found:
        yield found


def fetch(tmp_path: Path, hub_name: str, endpoint: str, environ: Mapping[str, str]) -> Path:
    """Download with nothing but `environ` around it."""
    known = {
        "HOME": str(tmp_path),
        "MODELSCOPE_ENDPOINT": endpoint,
        "HF_ENDPOINT": endpoint,
        "MODELSCOPE_API_TOKEN": TOKEN,
        "HF_TOKEN": TOKEN,
    }
    around = Surroundings(
        home=Home(tmp_path / "home"), settings=load_settings({**known, **environ}), retry=IMPATIENT
    )
    return download_snapshot(f"{hub_name}:{REPO}", around=around)


@pytest.mark.parametrize(
    ("variable", "hub_name"),
    [
        ("REQUESTS_CA_BUNDLE", "huggingface"),
        ("CURL_CA_BUNDLE", "modelscope"),
        ("SSL_CERT_FILE", "huggingface"),
    ],
)
def test_a_bundle_of_the_environment_is_trusted(
    front: Front, authority: Authority, tmp_path: Path, variable: str, hub_name: str
) -> None:
    folder = fetch(tmp_path, hub_name, front.endpoint, {variable: str(authority.bundle)})

    assert contents(folder) == FILES


def test_a_folder_of_certificates_is_trusted(
    front: Front, authority: Authority, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which names certificates in a folder")
    ask = ["openssl", "x509", "-hash", "-noout", "-in", str(authority.bundle)]
    name = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / f"{name}.0").write_bytes(authority.bundle.read_bytes())

    snapshot = fetch(tmp_path, "huggingface", front.endpoint, {"REQUESTS_CA_BUNDLE": str(folder)})

    assert contents(snapshot) == FILES


@HUBS
def test_an_unknown_authority_is_refused_at_once_with_the_way_out(
    front: Front, hub: FaultyHub, tmp_path: Path, hub_name: str
) -> None:
    with pytest.raises(HubUnreachableError, match="certificate was not accepted") as caught:
        fetch(tmp_path, hub_name, front.endpoint, {})

    assert "REQUESTS_CA_BUNDLE" in caught.value.hint
    assert hub.seen == []


def test_a_certificate_for_another_address_is_refused(hub: FaultyHub, tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other", address="127.0.0.2")
    environ = {"SSL_CERT_FILE": str(other.bundle)}
    with (
        https_front(hub.endpoint, other) as front,
        pytest.raises(HubUnreachableError, match="certificate was not accepted"),
    ):
        fetch(tmp_path, "huggingface", front.endpoint, environ)

    assert hub.seen == []


@HUBS
def test_a_proxy_of_the_environment_carries_tunnels_and_sees_no_token(
    front: Front, hub: FaultyHub, authority: Authority, tmp_path: Path, hub_name: str
) -> None:
    with connect_proxy() as proxy:
        address = proxy.endpoint.replace("http://", "http://ada:pass@")
        environ = {"SSL_CERT_FILE": str(authority.bundle), "HTTPS_PROXY": address}

        folder = fetch(tmp_path, hub_name, front.endpoint, environ)

    login = base64.b64encode(b"ada:pass").decode()
    place = front.endpoint.removeprefix("https://")
    assert contents(folder) == FILES
    assert proxy.heads
    assert all(head.startswith(f"CONNECT {place} ") for head in proxy.heads)
    assert all(
        f"basic {login}" in head.lower().replace(login.lower(), login) for head in proxy.heads
    )
    assert all(TOKEN not in head for head in proxy.heads)
    assert any(TOKEN in seen.headers.get("authorization", "") for seen in hub.seen)
    assert all("proxy-authorization" not in seen.headers for seen in hub.seen)


def test_a_host_that_needs_no_proxy_is_reached_directly(
    front: Front, authority: Authority, tmp_path: Path
) -> None:
    with connect_proxy() as proxy:
        environ = {
            "SSL_CERT_FILE": str(authority.bundle),
            "https_proxy": proxy.endpoint,
            "no_proxy": "localhost,127.0.0.1",
        }

        folder = fetch(tmp_path, "huggingface", front.endpoint, environ)

    assert contents(folder) == FILES
    assert proxy.heads == []


def test_a_proxy_that_is_not_there_is_one_clear_error(front: Front, tmp_path: Path) -> None:
    with pytest.raises(HubUnreachableError, match="proxy"):
        fetch(tmp_path, "huggingface", front.endpoint, {"https_proxy": "http://127.0.0.1:1"})

import pickle
from pathlib import Path

import pytest

from hub_tools.errors import BadSettingError
from hub_tools.settings import Network, Secret, check_endpoint, load_settings

TOKEN = "hf_very_secret_0123456789"


def test_defaults_are_the_public_hubs_without_a_token(tmp_path: Path) -> None:
    settings = load_settings({"HOME": str(tmp_path)})

    assert settings.modelscope.endpoint == "https://www.modelscope.cn"
    assert settings.huggingface.endpoint == "https://huggingface.co"
    assert settings.modelscope.token is None
    assert settings.huggingface.token is None


def test_variables_win_over_stored_logins(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("stored\n")
    env = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:1/"}

    stored = load_settings(env).huggingface
    given = load_settings(env | {"HF_TOKEN": TOKEN}).huggingface

    assert stored.endpoint == "http://127.0.0.1:1"
    assert stored.token is not None
    assert stored.token.reveal() == "stored"
    assert given.token is not None
    assert given.token.reveal() == TOKEN


def test_the_logins_of_both_official_clients_are_found(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("one")
    credentials = tmp_path / ".modelscope" / "credentials"
    credentials.mkdir(parents=True)
    (credentials / "git_token").write_text("two")
    (credentials / "cookies").write_bytes(pickle.dumps(["never read"]))

    settings = load_settings({"HOME": str(tmp_path)})

    assert settings.huggingface.token is not None
    assert settings.huggingface.token.reveal() == "one"
    assert settings.modelscope.token is not None
    assert settings.modelscope.token.reveal() == "two"


def test_a_token_is_never_shown() -> None:
    secret = Secret(TOKEN)
    settings = load_settings({"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": TOKEN})

    assert TOKEN not in f"{secret} {secret!r} {settings!r} {settings}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize("text", ["a\r\nX-Evil: 1", "tök", "x" * 5000, ""])
def test_a_token_that_would_write_headers_is_refused(text: str) -> None:
    with pytest.raises(BadSettingError) as caught:
        Secret(text)

    assert text == "" or text not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["huggingface.co", "ftp://x", "http://", "http://u:p@host", "http://h?x=1", "http://h:x"],
)
def test_an_endpoint_must_be_a_bare_url(text: str) -> None:
    with pytest.raises(BadSettingError):
        check_endpoint(text)


def test_hosts_that_need_no_proxy_get_none() -> None:
    network = Network({"https": "proxy:3128", "no": "localhost, .internal.example,127.0.0.1:8080"})

    assert network.proxy_for("https://huggingface.co/x") == "http://proxy:3128"
    assert network.proxy_for("https://hub.internal.example/x") is None
    assert network.proxy_for("https://127.0.0.1:8080/x") is None
    assert network.proxy_for("https://127.0.0.1:9090/x") == "http://proxy:3128"
    assert network.proxy_for("http://huggingface.co/x") is None

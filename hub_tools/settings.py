"""Endpoints, tokens and network settings: the one place of this room that reads the environment."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from hub_tools.errors import BadSettingError

MODELSCOPE_ENDPOINT = "https://www.modelscope.cn"
HUGGINGFACE_ENDPOINT = "https://huggingface.co"
_LONGEST_TOKEN = 4096


class Secret:
    """A token whose text appears only where somebody asks for it by name.

    Args:
        text: the token.
        source: where it was found, a variable or a file, as a message may say it.
    """

    __slots__ = ("_text", "source")

    def __init__(self, text: str, *, source: str = "") -> None:
        if not text or len(text) > _LONGEST_TOKEN or not text.isascii() or not text.isprintable():
            # a line break in a header would let a token file write headers of its own
            raise BadSettingError("a token is empty, too long, or has unprintable characters")
        self._text, self.source = text, source

    def reveal(self) -> str:
        """Return the token; only for a request's headers."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Where a hub is, and who we are there."""

    endpoint: str  # scheme://host[:port][/prefix], no slash at the end
    token: Secret | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """How the outside is reached."""

    # URL scheme -> proxy, perhaps with its password; "no" -> hosts that need none
    proxies: Mapping[str, str] = field(repr=False)
    ca_bundle: Path | None = None

    def proxy_for(self, url: str) -> str | None:
        """The proxy for a URL; None for a direct connection."""
        parts = urlsplit(url)
        proxy = self.proxies.get(parts.scheme) or self.proxies.get("all")
        if not proxy or self._is_direct(parts.hostname or "", parts.port):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _is_direct(self, host: str, port: int | None) -> bool:
        for entry in self.proxies.get("no", "").lower().split(","):
            name, _, only_port = entry.strip().lstrip(".").partition(":")
            if not name or (only_port and only_port != str(port)):
                continue
            if name == "*" or host == name or host.endswith(f".{name}"):
                return True
        return False


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says about hubs."""

    modelscope: HubAccess
    huggingface: HubAccess
    network: Network


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read endpoints, tokens, proxies and the CA bundle.

    A variable wins over the login that the hub's official client stored. Stored cookies are never
    read: they are pickles.

    Raises:
        BadSettingError: an endpoint that is no http(s) URL, or an unusable token.
    """
    env = os.environ if environ is None else environ
    return Settings(
        modelscope=HubAccess(
            _endpoint(env, "MODELSCOPE_ENDPOINT", MODELSCOPE_ENDPOINT),
            _token(env, "MODELSCOPE_API_TOKEN", _modelscope_login(env)),
        ),
        huggingface=HubAccess(
            _endpoint(env, "HF_ENDPOINT", HUGGINGFACE_ENDPOINT),
            _token(env, "HF_TOKEN", _huggingface_login(env)),
        ),
        network=Network(_proxies(environ), _ca_bundle(env)),
    )


def _endpoint(env: Mapping[str, str], variable: str, default: str) -> str:
    text = env.get(variable, "").strip() or default
    try:
        return check_endpoint(text)
    except BadSettingError as error:
        raise BadSettingError(f"{variable}: {error}") from error


def check_endpoint(text: str) -> str:
    """Return a hub's address without a slash at its end.

    Raises:
        BadSettingError: no http(s) URL, or one with a password, query or fragment in it.
    """
    parts = urlsplit(text)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise BadSettingError("not a URL such as https://hub.example")
    if parts.username is not None or parts.query or parts.fragment:
        raise BadSettingError("a user name, query or fragment does not belong into an endpoint")
    return text.rstrip("/")


def _token(env: Mapping[str, str], variable: str, stored: Path) -> Secret | None:
    text = env.get(variable, "").strip()
    source = variable
    if not text:
        source = str(stored)
        try:
            text = stored.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
    try:
        return Secret(text, source=source) if text else None
    except BadSettingError as error:
        raise BadSettingError(f"{source}: {error}") from error


def _user_home(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) if env.get("HOME") else Path.home()


def _huggingface_login(env: Mapping[str, str]) -> Path:
    if env.get("HF_TOKEN_PATH"):
        return Path(env["HF_TOKEN_PATH"]).expanduser()
    if env.get("HF_HOME"):
        return Path(env["HF_HOME"]).expanduser() / "token"
    cache = env.get("XDG_CACHE_HOME")
    root = Path(cache).expanduser() if cache else _user_home(env) / ".cache"
    return root / "huggingface" / "token"


def _modelscope_login(env: Mapping[str, str]) -> Path:
    configured = env.get("MODELSCOPE_HOME")
    root = Path(configured).expanduser() if configured else _user_home(env) / ".modelscope"
    return root / "credentials" / "git_token"


def _proxies(environ: Mapping[str, str] | None) -> Mapping[str, str]:
    if environ is None:
        return urllib.request.getproxies()
    names = {"http": "http_proxy", "https": "https_proxy", "all": "all_proxy", "no": "no_proxy"}
    found = {scheme: environ.get(v) or environ.get(v.upper()) for scheme, v in names.items()}
    return {scheme: proxy for scheme, proxy in found.items() if proxy}


def _ca_bundle(env: Mapping[str, str]) -> Path | None:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        if env.get(variable):
            path = Path(env[variable]).expanduser()
            if not path.exists():
                raise BadSettingError(f"{variable} names {path}, which does not exist")
            return path
    return None

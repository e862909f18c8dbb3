"""Origins: who may see a token, and how a URL may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from hub_tools.errors import HubProtocolError


@dataclass(frozen=True, slots=True)
class Origin:
    """Who may see a token: scheme, host and port, all three."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of a URL.

        Raises:
            HubProtocolError: no http(s) URL with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise HubProtocolError("a URL that cannot be parsed") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise HubProtocolError(f"not an http(s) URL: {shown_url(url)}")
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def shown_url(url: str) -> str:
    """A URL as messages and logs may show it: without user name, query and fragment.

    The query of a storage URL is a capability: whoever reads it may fetch the file.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a URL that cannot be parsed)"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")

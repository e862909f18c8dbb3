"""Pools of open connections, direct ones and those through proxies."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import urlsplit

import urllib3

from hub_tools.settings import Network

_HOSTS = 16  # with open connections at once; a hub and its storage are two


class ConnectionPools:
    """Keeps connections open for the next request to the same host.

    Args:
        network: proxies and CA bundle.
        size: connections kept per host.
    """

    def __init__(self, network: Network, *, size: int) -> None:
        self._network, self._size = network, size
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def for_url(self, url: str) -> urllib3.PoolManager:
        """The pool that a URL is reached through."""
        proxy = self._network.proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._new(proxy)
            return self._pools[proxy]

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()

    def _new(self, proxy: str | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {"num_pools": _HOSTS, "maxsize": self._size}
        bundle = self._network.ca_bundle
        if bundle is not None:
            options["ca_cert_dir" if bundle.is_dir() else "ca_certs"] = str(bundle)
        if proxy is None:
            return urllib3.PoolManager(**options)
        parts = urlsplit(proxy)
        if parts.username is not None:
            credentials = f"{parts.username}:{parts.password or ''}"
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=credentials)
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return urllib3.ProxyManager(bare, **options)

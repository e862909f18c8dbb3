"""The options of `python -m hub_tools.serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from model_store.options import option


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to serve, where, and to whom."""

    root: Path = option("folder of owner/name and owner/name@TAG folders", flag="", metavar="ROOT")
    host: str = option("address to listen at", default="127.0.0.1")
    port: int = option("port to listen at; 0 takes a free one", default=0)
    token: str | None = option(
        "ask for this token on writes and private repositories; FERRY_SERVE_TOKEN does the same "
        "without showing it to everybody who lists processes",
        default=None,
    )
    private: tuple[str, ...] = option(
        "owner/name that only the token may read; can be repeated", default=(), metavar="REPO"
    )
    read_only: bool = option("refuse every change", default=False)


def serve_token(options: ServeOptions) -> str | None:
    """The token in force: the flag's, else the environment's."""
    return options.token or os.environ.get("FERRY_SERVE_TOKEN") or None

"""What the tests of the local hub share: sample repositories and plain HTTP calls."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WEIGHTS = bytes(range(256)) * 5000  # 1.28 MB: large enough to be linked, not copied
OLD_WEIGHTS = WEIGHTS[::-1]
ODD_NAME = "数据/空 格#1%+&?.json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fill(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def sample_root(root: Path) -> Path:
    """A root with one repository: a default branch, and the tag v1.0.0 with other bytes."""
    now = {"README.md": b"# now\n", "config.json": b"{}", "model.safetensors": WEIGHTS}
    fill(root / "qwen/Demo", {**now, ODD_NAME: '"空"'.encode(), "empty.txt": b""})
    fill(root / "qwen/Demo@v1.0.0", {"README.md": b"# old\n", "model.safetensors": OLD_WEIGHTS})
    return root


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(
    endpoint: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request; `body` is bytes, or something to send as JSON."""
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    address = urlsplit(endpoint).netloc
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request(method, path.removeprefix(endpoint), data, sent)
        reply = connection.getresponse()
        lower = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, lower, reply.read())


def ndjson(*lines: tuple[str, Mapping[str, Any]]) -> bytes:
    """The body of a Hugging Face commit."""
    return b"".join(
        json.dumps({"key": key, "value": dict(value)}).encode() + b"\n" for key, value in lines
    )


def files_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, without caches and locks of clients."""
    return dict(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), path.read_bytes()

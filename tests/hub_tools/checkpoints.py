"""Small repositories, the local hub that serves them, and surroundings that reach it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from hub_tools.hubs import Surroundings
from hub_tools.retries import RetryPolicy
from hub_tools.settings import HubAccess, Network, Secret, Settings
from hub_tools.transfer_options import TransferOptions
from model_store.places import Home

REPO = "qwen/tiny"
WEIGHTS = random.Random(7).randbytes(600_000)
FILES: Mapping[str, bytes] = {
    "README.md": b"# tiny\n",
    "config.json": b'{"model_type": "qwen_vl"}',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    "assets/a b+c.txt": b"a name to be quoted",
}
IMPATIENT = RetryPolicy(
    attempts=2, first_delay=0.01, longest_delay=0.02, connect_timeout=2, read_timeout=3
)


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def reach(
    endpoint: str, home: Path, *, token: str | None = None, transfer: TransferOptions | None = None
) -> Surroundings:
    """Surroundings in which both hubs are at `endpoint`."""
    access = HubAccess(endpoint, Secret(token) if token else None)
    return Surroundings(
        home=Home(home),
        settings=Settings(access, access, Network({})),
        transfer=transfer
        or TransferOptions(
            connections=4, part_size=100_000, smallest_request=100_000, largest_request=100_000
        ),
        retry=IMPATIENT,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder except manifests."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "ferry.manifest.json"
    }

"""Where a row of the fault table is played: a hub, the network's faults, a client in its process.

All clients, ours and the unmodified official ones, get the same stage and are judged alike: by the
bytes under the final names, by what lies elsewhere, by the time, and by a rerun without the fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hub_tools.server.app import RunningHub, running_hub
from tests.hub_tools.checkpoints import write_files
from tests.hub_tools.faulty_hub import FaultyHub, faulty_hub

REPO = "qwen/tiny"
TOKEN = "stage-token"
_ROOT = Path(__file__).parents[2]

_OURS = """
import json, sys
from pathlib import Path
from hub_tools.snapshots import download_snapshot
from model_store.errors import ToolkitError
ask = json.loads(sys.argv[1])
target = Path(ask["target"]) if ask["target"] else None
try:
    folder = download_snapshot(
        f"{ask['dialect']}:{ask['repo']}", target=target, offline=ask["offline"],
        include=ask["include"],
    )
    said = {"folder": str(folder)}
except ToolkitError as error:
    # a subclass that only its own module knows is what its public parent says
    name = next(k.__name__ for k in type(error).__mro__ if not k.__name__.startswith("_"))
    said = {"error": name, "message": str(error)}
print(json.dumps(said))
"""
_OFFICIAL = """
import json, sys
ask = json.loads(sys.argv[1])
from {module} import snapshot_download
try:
    folder = snapshot_download(
        ask["repo"], local_dir=ask["target"], local_files_only=ask["offline"],
        allow_patterns=ask["include"] or None,
    )
    said = {{"folder": str(folder)}}
except Exception as error:
    said = {{"error": type(error).__name__, "message": str(error)}}
print(json.dumps(said))
"""


@dataclass(frozen=True, slots=True)
class Client:
    """Who downloads, and which hub's dialect it speaks."""

    name: str
    dialect: str
    program: str

    @property
    def is_ours(self) -> bool:
        return self.name == "modelferry"


OURS = tuple(Client("modelferry", dialect, _OURS) for dialect in ("huggingface", "modelscope"))
OFFICIAL = (
    Client("huggingface_hub", "huggingface", _OFFICIAL.format(module="huggingface_hub")),
    Client("modelscope", "modelscope", _OFFICIAL.format(module="modelscope")),
)


@dataclass(frozen=True, slots=True)
class Run:
    """How one process of a client ended."""

    ended: str  # "done", "error", "crash" or "hung"
    seconds: float  # from its first request on: how long Python takes to start is no fault's
    error: str = ""
    message: str = ""
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a row came to with one client."""

    outcome: str  # "good", "error", "wrong bytes", "outside", "leak", "hung" or "crash"
    seconds: float
    error: str = ""
    message: str = ""
    rerun: str = ""  # the outcome without the fault; empty when there was no need
    sent: float = 0.0  # bytes of files that were sent, as a multiple of the repository


@dataclass
class Stage:
    """One client's playground for one row."""

    client: Client
    folder: Path
    root: Path  # of the hub
    hub: RunningHub
    player: FaultyHub
    files: Mapping[str, bytes]  # what must arrive
    limit: float  # seconds that a run may take before it is killed
    token: str | None = None
    direct: bool = False  # past the player, where thousands of requests are the point
    include: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Everything that the client may write is here."""
        return self.folder / "work"

    @property
    def target(self) -> Path:
        return self.work / "copy" / "target"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    def start(self, *, to_store: bool = False, offline: bool = False) -> subprocess.Popen[str]:
        """Start a download; into the client's own store or cache, or to `target`."""
        self.player.first_request = None
        self.target.parent.mkdir(parents=True, exist_ok=True)
        ask = {
            "repo": REPO,
            "dialect": self.client.dialect,
            "target": None if to_store else str(self.target),
            "offline": offline,
            "include": list(self.include),
        }
        return subprocess.Popen(
            [sys.executable, "-c", self.client.program, json.dumps(ask)],
            cwd=_ROOT,
            env=self._variables(offline=offline),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *, to_store: bool = False, offline: bool = False) -> Run:
        """Download, and say how it ended."""
        began = time.monotonic()
        return self.ended(self.start(to_store=to_store, offline=offline), began)

    def ended(self, process: subprocess.Popen[str], began: float) -> Run:
        """Wait for a process; one that takes too long is killed."""
        try:
            out, err = process.communicate(timeout=max(0.1, began + self.limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Run("hung", self._since_first_request(began))
        seconds = self._since_first_request(began)
        try:
            said = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            return Run("crash", seconds, message=err[-2000:])
        if "error" in said:
            return Run("error", seconds, said["error"], said["message"])
        return Run("done", seconds, folder=Path(said["folder"]))

    def _since_first_request(self, began: float) -> float:
        return time.monotonic() - max(began, self.player.first_request or began)

    def _variables(self, *, offline: bool) -> dict[str, str]:
        endpoint = self.hub.endpoint if self.direct else self.player.endpoint
        home = self.work / "home"
        home.mkdir(parents=True, exist_ok=True)
        known = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        variables = {
            "HOME": str(home),
            "FERRY_HOME": str(home / "ferry"),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "MODELSCOPE_ENDPOINT": endpoint,
            "MODELSCOPE_CACHE": str(home / "ms"),
            "MODELSCOPE_HOME": str(home / "ms-home"),
            "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
        }
        if offline:
            variables["HF_HUB_OFFLINE"] = "1"
        if self.token is not None:
            variables |= {"HF_TOKEN": self.token, "MODELSCOPE_API_TOKEN": self.token}
        return known | variables | self.environment

    def report(self, run: Run, *, rerun: str = "") -> Report:
        """Judge a run by what lies on the disk."""
        outcome = run.ended
        if run.folder is not None:
            outcome = "good" if visible(run.folder) == dict(self.files) else "wrong bytes"
        elif self._has_wrong_file():
            outcome = "wrong bytes"
        if self._is_leaked():
            outcome = "leak"
        if self.strays():
            outcome = "outside"
        size = sum(map(len, self.files.values())) or 1
        sent = 0.0 if self.direct else self.player.sent / size
        return Report(outcome, run.seconds, run.error, run.message, rerun, round(sent, 2))

    def healed(self, run: Run, *, to_store: bool = False) -> Report:
        """Judge a run; when it brought no good bytes, let the fault end and run again."""
        first = self.report(run)
        if first.outcome == "good":
            return first
        self.player.heal()
        again = self.report(self.run(to_store=to_store))
        words = again.outcome + (f": {again.error}" if again.error else "")
        return Report(first.outcome, first.seconds, first.error, first.message, words, first.sent)

    def strays(self) -> list[str]:
        """Files that the client wrote where nothing of it belongs."""
        found = [path for path in self.outside.rglob("*") if not path.is_dir()]
        around = self.target.parent
        for path in [*self.work.iterdir(), *(around.iterdir() if around.is_dir() else [])]:
            # a client may keep state beside the target, under a hidden name
            known = path.name in ("home", "copy", "target") or path.name.startswith(".")
            if not known:
                found.append(path)
        return [path.name for path in found]

    def _has_wrong_file(self) -> bool:
        return self.target.is_dir() and any(
            path in self.files and self.files[path] != data
            for path, data in visible(self.target).items()
        )

    def _is_leaked(self) -> bool:
        return any(
            seen.at_storage and TOKEN in value
            for seen in self.player.seen
            for value in seen.headers.values()
        )


@contextmanager
def staged(
    client: Client,
    folder: Path,
    files: Mapping[str, bytes],
    *,
    limit: float,
    token: str | None = None,
) -> Iterator[Stage]:
    """Put up the hub and the player for one row."""
    write_files(folder / "hub" / REPO, files)
    for name in ("work", "outside"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (
        running_hub(folder / "hub") as hub,
        faulty_hub(hub.endpoint) as player,
    ):
        yield Stage(client, folder, folder / "hub", hub, player, files, limit, token)


def visible(folder: Path) -> dict[str, bytes]:
    """Every file of a finished copy, without what clients keep beside it."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith((".", "._")) for part in parts)
        if path.is_file() and not hidden and path.name != "ferry.manifest.json":
            found["/".join(parts)] = path.read_bytes()
    return found


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Mount a small disk at `folder`.

    Raises:
        PermissionError: this process may not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={mebibytes}m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        raise PermissionError("a small disk cannot be mounted here")
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)


def resize_disk(folder: Path, mebibytes: int) -> None:
    """Make a mounted small disk larger."""
    options = f"remount,size={mebibytes}m"
    subprocess.run(["mount", "-o", options, str(folder)], capture_output=True, check=True)

"""Put the local hub together: a root folder, two dialects, one HTTP server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hub_tools.errors import ListenError
from hub_tools.server import huggingface, modelscope
from hub_tools.server.access import Access
from hub_tools.server.http import HttpServer, Request, Response, Router
from hub_tools.server.hub import Hub
from hub_tools.server.huggingface import HuggingFaceReads
from hub_tools.server.huggingface_writes import HuggingFaceWrites
from hub_tools.server.importing import Importer
from hub_tools.server.lfs import Uploads
from hub_tools.server.modelscope import ModelScopeReads
from hub_tools.server.modelscope_writes import ModelScopeWrites
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import Repositories
from hub_tools.server.store import BlobStore
from model_store.errors import StoreError
from model_store.files import exclusive
from model_store.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a hub is run; see `python -m hub_tools.serve --help`."""

    token: str | None = None
    read_only: bool = False
    private: tuple[str, ...] = ()  # owner/name of folders that need the token
    host: str = "127.0.0.1"
    port: int = 0
    page_size: int = 1000  # entries per page of Hugging Face's listings


@dataclass(frozen=True, slots=True)
class RunningHub:
    """A hub that answers at `endpoint` until its block ends; `hub` is its state."""

    endpoint: str
    root: Path
    hub: Hub


class App:
    """Answers requests; a refusal is worded in the dialect of the request's path."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # ModelScope's first: Hugging Face's /{repo}/resolve/… would take some of its paths
        rooms = (
            Uploads(hub),
            ModelScopeReads(hub),
            ModelScopeWrites(hub),
            HuggingFaceReads(hub),
            HuggingFaceWrites(hub),
        )
        self._route = Router([route for room in rooms for route in room.routes()])

    def __call__(self, request: Request) -> Response:
        try:
            self._hub.access.check_presented(request)
            return self._route(request)
        except Problem as problem:
            return _dialect(request.path)(problem)
        except StoreError as error:
            _log.error("%s %s: %s", request.method, request.path, error)
            return _dialect(request.path)(Problem(Reason.STORE_DAMAGED, str(error)))


def _dialect(path: str) -> Callable[[Problem], Response]:
    if path.startswith("/openapi/v1/"):
        return modelscope.render_openapi
    if path.startswith(("/api/v1/", "/models/")):
        return modelscope.render
    return huggingface.render


@contextmanager
def open_hub(
    root: Path, options: HubOptions, *, progress: Progress | None = None
) -> Iterator[tuple[HttpServer, Hub]]:
    """Import the folders of `root` and bind the server; the caller runs `serve_forever`.

    Raises:
        BusyError: another hub serves the same root.
        ListenError: the address is taken, or is none of this machine.
        StoreError: a folder that cannot be imported.
    """
    state = root / ".hub"
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write to {state}: {error.strerror}", hint="A hub keeps its state in its root."
        ) from error
    with exclusive(state / "lock", wait=False, what=f"a hub in {root}"):
        blobs = BlobStore(state)
        blobs.clear_incoming()
        repositories = Repositories(state, blobs)
        Importer(root, blobs, repositories).run(progress=progress)
        _make_private(repositories, options.private)
        access = Access(options.token, read_only=options.read_only)
        hub = Hub(blobs, repositories, access, page_size=options.page_size)
        with _listening(options, App(hub)) as server:
            yield server, hub


def _listening(options: HubOptions, app: App) -> HttpServer:
    try:
        return HttpServer((options.host, options.port), app)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        place = f"{options.host}:{options.port}"
        raise ListenError(f"cannot listen at {place}: {reason}") from error


def _make_private(repositories: Repositories, names: tuple[str, ...]) -> None:
    for name in names:
        repo = repositories.find(name)
        if repo is None:
            raise StoreError(f"--private {name}: there is no such repository")
        repositories.edit(repo, lambda current: replace(current, private=True))


@contextmanager
def running_hub(
    root: Path,
    *,
    token: str | None = None,
    read_only: bool = False,
    private: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    page_size: int = 1000,
) -> Iterator[RunningHub]:
    """Serve `root` from a thread of this process until the block ends."""
    options = HubOptions(token, read_only, private, host, port, page_size)
    with open_hub(root, options) as (server, hub):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield RunningHub(server.endpoint, root, hub)
        finally:
            server.shutdown()
            thread.join()

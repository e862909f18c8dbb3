"""Find the hub that has a repository: ModelScope first, then Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hub_tools.errors import (
    AuthError,
    GatedError,
    HubError,
    HubUnreachableError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from hub_tools.huggingface import huggingface_client
from hub_tools.modelscope import modelscope_client
from hub_tools.names import HUBS, MODELSCOPE, RepoName
from hub_tools.protocol import HubClient, Pin
from hub_tools.retries import RetryPolicy
from hub_tools.settings import Settings, load_settings
from hub_tools.sources import SourceReport
from hub_tools.transfer_options import TransferOptions
from model_store.places import Home, home
from model_store.progress import NoProgress, Progress

# which refusal says most, when every hub refused
_TELLING: tuple[type[HubError], ...] = (
    AuthError,
    GatedError,
    RevisionNotFoundError,
    HubUnreachableError,
    RepoNotFoundError,
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a download finds around it; by default what the environment says."""

    home: Home = field(default_factory=home)
    settings: Settings = field(default_factory=load_settings)
    transfer: TransferOptions = field(default_factory=TransferOptions)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = field(default_factory=NoProgress)
    # what each source did, added to by every transfer
    reports: list[SourceReport] = field(default_factory=list)

    def client(self, hub: str) -> HubClient:
        """Make a client for a hub's configured endpoint."""
        if hub == MODELSCOPE:
            return modelscope_client(self.settings.modelscope, self.settings.network, self.retry)
        return huggingface_client(self.settings.huggingface, self.settings.network, self.retry)


@dataclass(frozen=True, slots=True)
class Located:
    """A repository's revision, pinned, and the client of the hub that has it."""

    client: HubClient
    pin: Pin


def hubs_for(name: RepoName) -> Sequence[str]:
    """The hubs to look on, in order."""
    return HUBS if name.hub is None else (name.hub,)


def locate(name: RepoName, around: Surroundings) -> Located:
    """Pin a name on the first hub that has it.

    Raises:
        HubError: no hub has it; of several refusals the one that says most.
    """
    refusals: list[HubError] = []
    for hub in hubs_for(name):
        client = around.client(hub)
        try:
            pin = client.pin(name.repo_id, name.revision)
        except HubError as error:
            if name.hub is not None:
                raise
            around.progress.log(f"{hub}: {error}")
            refusals.append(error)
            continue
        around.progress.log(f"{hub} has {name.repo_id}@{pin.revision}: {pin.commit}")
        return Located(client, pin)
    raise min(refusals, key=_rank)


def _rank(error: HubError) -> int:
    return next((i for i, kind in enumerate(_TELLING) if isinstance(error, kind)), -1)

"""Other repositories that hold the same files, so that one file comes from several places at once.

Nothing they say is believed: the bytes must have the digest that the repository asked for promises.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from hub_tools.errors import BadNameError, BadSettingError, HubError
from hub_tools.hubs import Located, Surroundings, hubs_for
from hub_tools.huggingface import huggingface_client
from hub_tools.names import HUGGINGFACE, LOCAL, RepoName, parse_repo
from hub_tools.protocol import HubClient, RemoteFile
from hub_tools.settings import HubAccess, check_endpoint
from hub_tools.sources import Offer, Source
from model_store.errors import StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MirrorName:
    """Where else to look: a repository of a hub, perhaps at an address of its own."""

    repo: RepoName
    endpoint: str | None = None  # one that speaks Hugging Face's protocol


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another repository, pinned and listed."""

    source: Source
    by_digest: dict[str, str]  # sha256 -> path
    by_path: dict[str, RemoteFile] = field(repr=False)


def parse_mirror(text: str) -> MirrorName:
    """Read `hub:owner/name@revision`, or `http(s)://host/owner/name@revision`.

    Raises:
        BadNameError: neither.
    """
    if not text.startswith(("http://", "https://")):
        repo = parse_repo(text)
        if repo.hub in (None, LOCAL):
            raise BadNameError(
                f"{text!r} names no hub", hint="Write huggingface:owner/name, or a URL."
            )
        return MirrorName(repo)
    address, at, revision = text.partition("@")
    endpoint, owner, name = [*address.rsplit("/", 2), "", ""][:3]
    repo_id = f"{owner}/{name}{at}{revision}"
    try:
        return MirrorName(replace(parse_repo(repo_id), hub=HUGGINGFACE), check_endpoint(endpoint))
    except BadSettingError as error:
        raise BadNameError(f"{text!r}: {error}") from error


def find_mirrors(names: Sequence[MirrorName], around: Surroundings) -> list[Mirror]:
    """List other repositories; one that cannot be listed is left out, and said."""
    found = []
    for name in names:
        try:
            found.append(_mirror(name, around))
        except (HubError, StoreError) as error:
            around.progress.log(f"{_label(name)} is not used: {error}")
    return found


def _mirror(name: MirrorName, around: Surroundings) -> Mirror:
    client = _client(name, around)
    pin = client.pin(name.repo.repo_id, name.repo.revision)
    files = pin.files if pin.files is not None else client.files(pin)
    around.progress.log(f"{_label(name)} helps with {pin.repo_id}@{pin.revision}: {pin.commit}")
    source = source_of(Located(client, pin), _label(name))
    by_digest = {file.sha256: file.path for file in files if file.sha256}
    return Mirror(source, by_digest, {file.path: file for file in files})


def _client(name: MirrorName, around: Surroundings) -> HubClient:
    if name.endpoint is None:
        return around.client(hubs_for(name.repo)[0])
    # an address that the user typed gets no token: it is not known to be the token's hub
    return huggingface_client(HubAccess(name.endpoint), around.settings.network, around.retry)


def _label(name: MirrorName) -> str:
    if name.endpoint is not None:
        return urlsplit(name.endpoint).netloc
    return name.repo.hub or ""


def source_of(located: Located, label: str | None = None) -> Source:
    """The pinned repository as a place that bytes come from."""
    client, pin = located.client, located.pin
    return Source(
        label or pin.hub,
        pin.hub,
        client.http,
        lambda path: client.location(pin, path),
        page=client.page(pin.repo_id),
        account=client.account,
    )


class Offers:
    """Who has a file: the repository itself, and mirrors.

    Args:
        located: the repository that was asked for.
        mirrors: the others.
    """

    def __init__(self, located: Located, mirrors: Sequence[Mirror]) -> None:
        self._source = source_of(located)
        self._mirrors = mirrors

    def of(self, file: RemoteFile) -> tuple[Offer, ...]:
        """The offers for a file, its own repository's first."""
        offers = [Offer(self._source, file.path)]
        for mirror in self._mirrors:
            offer = _offer(mirror, file)
            if offer is not None:
                offers.append(offer)
        return tuple(offers)


def _offer(mirror: Mirror, file: RemoteFile) -> Offer | None:
    if file.sha256 and file.sha256 in mirror.by_digest:
        return Offer(mirror.source, mirror.by_digest[file.sha256])
    theirs = mirror.by_path.get(file.path)
    if theirs is None or theirs.size != file.size or not (file.sha256 or file.git_sha1):
        return None  # without a promise of our own, their bytes could not be judged
    if file.git_sha1 and theirs.git_sha1:
        return Offer(mirror.source, file.path) if file.git_sha1 == theirs.git_sha1 else None
    if file.sha256 and theirs.sha256:
        return None
    return Offer(mirror.source, file.path, certain=False)

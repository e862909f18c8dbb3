"""What hubs, and transfers from and to them, can do to us.

HubError                     a hub answered with a failure, or did not answer
├── BadNameError             a name that names no repository (exit 2)
├── BadSettingError          an environment variable or stored login that cannot be used
├── OfflineError             the network was needed, and was forbidden
├── HubUnreachableError      no connection, or no answer in time
├── AuthError                401: no token, or one that the hub does not know
├── GatedError               403: the token is known and not allowed to do this
├── RepoNotFoundError        404: no such repository, or a private one
├── RevisionNotFoundError    404: no such branch, tag or commit
├── EntryNotFoundError       404: no such file
├── RateLimitedError         429 that did not go away
├── HubProtocolError         an answer that the protocol does not allow
├── RevisionMovedError       the listing changed while the files were fetched
├── ListenError              the local hub cannot be put up where it was asked to be
├── PublishError             a snapshot was not published
│   ├── NotPublishableError      it must not leave this machine as it is
│   ├── DestinationError         the repository is not what was asked for
│   ├── HeadMovedError           somebody else committed meanwhile
│   └── UploadError              the hub did not take what was sent, or not as it was sent
└── TransferError            bytes did not arrive
    ├── SizeMismatchError        a file is longer or shorter than listed
    └── DiskSpaceError           not enough room for what is to be fetched
model_store's DigestMismatchError
└── GitDigestMismatchError   a file that is listed by its git blob id only
"""

from __future__ import annotations

from collections.abc import Sequence

from model_store.errors import DigestMismatchError, StoreError, ToolkitError, UsageError


class HubError(ToolkitError):
    """A hub answered with a failure, or did not answer."""


class BadNameError(HubError, UsageError):
    """A text that names no repository and no folder."""

    hint = "Write owner/name, hub:owner/name@revision, or the path of a folder."


class BadSettingError(HubError):
    """An environment variable, or a stored login, that cannot be used."""

    hint = "Correct the variable, or unset it."


class OfflineError(HubError):
    """The network was needed, and the caller forbade it."""

    hint = "Run once without --offline, so that the files are fetched."


class HubUnreachableError(HubError):
    """No connection, or no answer in time."""

    hint = "Check the network, the proxy and the hub's endpoint; run again to go on."


class AuthError(HubError):
    """The hub wants a token, or does not know the one it got."""

    hint = "Log in with the hub's own client, or set its token variable."


class GatedError(HubError):
    """The token is known, and not allowed to do this."""

    hint = "Ask for access on the repository's page, or use another account's token."


class RepoNotFoundError(HubError):
    """No such repository, or one that this token may not see."""

    hint = "Check owner and name; a private repository needs a token that may read it."


class RevisionNotFoundError(HubError):
    """The repository has no such branch, tag or commit."""

    hint = "Leave --revision out for the default branch."

    def __init__(self, message: str, *, near: Sequence[str] = ()) -> None:
        hint = f"Revisions there: {', '.join(near)}." if near else None
        super().__init__(message, hint=hint)
        self.near = tuple(near)


class EntryNotFoundError(HubError):
    """The revision has no such file."""


class RateLimitedError(HubError):
    """The hub asks to slow down, and went on asking."""

    hint = "Wait some minutes and run again; a token usually has a higher limit."


class HubProtocolError(HubError):
    """An answer that the protocol does not allow; nothing of it is used."""

    hint = "Check that the endpoint is a hub, and not a login page or a proxy's error page."


class RevisionMovedError(HubError):
    """The listing changed while the files were fetched."""

    hint = "Run again: files that did not change are not fetched a second time."


class TransferError(HubError):
    """Bytes did not arrive; those that did are kept."""

    hint = "Run the same command again: it goes on where this one stopped."


class SizeMismatchError(TransferError):
    """A file is longer or shorter than the hub lists it."""

    hint = "Run again; if it stays, the hub contradicts itself: report it to the hub."


class DiskSpaceError(TransferError):
    """The disk has not enough room for what is to be fetched."""

    hint = "Free some space, or set FERRY_HOME or --local-dir to a larger disk."


class GitDigestMismatchError(DigestMismatchError):
    """A small file of Hugging Face does not hash to its git blob id."""

    def __init__(self, path: str, *, expected: str, actual: str) -> None:
        StoreError.__init__(
            self, f"{path}: git sha1 is {actual[:12]}…, {expected[:12]}… was promised"
        )
        self.path, self.expected, self.actual = path, expected, actual


class ListenError(HubError):
    """The local hub cannot be put up where it was asked to be."""

    hint = "Take another --host or --port; --port 0 finds a free one."


class PublishError(HubError):
    """A snapshot was not published."""


class NotPublishableError(PublishError):
    """A snapshot must not leave this machine as it is."""


class DestinationError(PublishError):
    """The repository at the hub is not what was asked for; it was not changed."""


class HeadMovedError(PublishError):
    """Somebody else committed to the branch meanwhile; nothing of theirs was overwritten."""

    hint = "Look at what came in, then run again: bytes that were sent are not sent again."


class UploadError(PublishError):
    """The hub did not take what was sent, or lists something else now."""

    hint = "Run the same command again: bytes that arrived are not sent again."

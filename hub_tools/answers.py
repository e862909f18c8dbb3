"""What a hub's answer to a request for bytes means: bytes, another try, or the end."""

from __future__ import annotations

import re

from hub_tools.errors import (
    GitDigestMismatchError,
    HubError,
    HubProtocolError,
    HubUnreachableError,
    SizeMismatchError,
)
from hub_tools.frontier import Digests
from hub_tools.http import UNPACKED, Stream
from hub_tools.protocol import RemoteFile
from hub_tools.replies import refusal
from hub_tools.retries import retry_after
from hub_tools.sources import Offer
from model_store.errors import DigestMismatchError

_TRIED_AGAIN = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
_BUSY = frozenset({429, 503})
_EXPIRED = frozenset({400, 401, 403, 404, 410})  # a signed URL that the hub redirected to
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class TryAgainError(Exception):
    """This try failed, and the next may not.

    Args:
        error: what to raise when nothing helps.
        after: seconds that the hub asks to wait.
        busy: the hub refuses because it is asked too much.
    """

    def __init__(self, error: HubError, *, after: float | None = None, busy: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.after, self.busy = error, after, busy


class WrongRangeError(TryAgainError):
    """Not the range that was asked for; the whole file may still come right.

    Args:
        error: see `TryAgainError`.
        hopeless: no range will ever come right from there.
    """

    def __init__(self, error: HubError, *, hopeless: bool = False) -> None:
        super().__init__(error)
        self.hopeless = hopeless


def check_answer(file: RemoteFile, offer: Offer, stream: Stream, start: int, end: int) -> bool:
    """Make sure that a stream brings the bytes from `start` to `end` of a file, or all of it.

    Returns:
        Whether it comes compressed, and has to be unpacked.

    Raises:
        TryAgainError: it does not bring them, and another try may.
        HubError: the hub refuses.
    """
    if stream.status not in (200, 206):
        raise _refused(file, offer, stream)
    length = stream.headers.get("Content-Length")
    expected = end - start if stream.status == 206 else file.size
    if _is_compressed(stream) and length != str(expected):
        # a length that agrees says that the file itself is what is compressed
        _check_compressed(file, stream, start, end)
        return True
    if stream.status == 206:
        _check_range(file, stream.headers.get("Content-Range", ""), start, end)
    if length is not None and length != str(expected):
        shown = f"{start} + {length}" if stream.status == 206 else length
        raise TryAgainError(_wrong_size(file, shown))
    return False


def _is_compressed(stream: Stream) -> bool:
    return stream.headers.get("Content-Encoding", "identity").strip().lower() != "identity"


def _check_compressed(file: RemoteFile, stream: Stream, start: int, end: int) -> None:
    """Nobody asked for it, but a whole file that can be unpacked is judged by its digest."""
    encoding = stream.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in UNPACKED:
        raise TryAgainError(HubProtocolError(f"{file.path} comes compressed, by {encoding!r}"))
    if stream.status == 206 and (start, end) != (0, file.size):
        # of which bytes this is a range cannot be known
        error = HubProtocolError(f"a range of {file.path} comes compressed")
        raise WrongRangeError(error, hopeless=True)


def promised_digest(stream: Stream) -> str | None:
    """The sha256 that comes with an answer, for files whose listing has none."""
    linked = stream.headers.get("X-Linked-ETag", "").strip('"')
    return linked if _SHA256.fullmatch(linked) else None


def find_mismatch(
    file: RemoteFile, promised: str | None, found: Digests
) -> DigestMismatchError | None:
    """The error for a file that is not what was promised."""
    if promised is not None and found.sha256 != promised:
        return DigestMismatchError(file.path, expected=promised, actual=found.sha256)
    if file.git_sha1 and found.git_sha1 and found.git_sha1 != file.git_sha1:
        return GitDigestMismatchError(file.path, expected=file.git_sha1, actual=found.git_sha1)
    return None


def _refused(file: RemoteFile, offer: Offer, stream: Stream) -> Exception:
    source = offer.source
    redirected = stream.url != source.http.absolute(offer.url)
    error: HubError
    if not redirected:
        error = refusal(
            source.hub,
            source.http,
            stream.status,
            file.path,
            said=stream.headers.get("X-Error-Message", ""),
            page=source.page,
            account=source.account,
        )
    else:
        error = HubUnreachableError(
            f"the storage of {source.label} answers {stream.status} for {file.path}"
        )
    again = stream.status in _TRIED_AGAIN or (redirected and stream.status in _EXPIRED)
    asked = retry_after(stream.headers)
    if not again or (asked or 0) > source.http.retry.longest_retry_after:
        return error
    return TryAgainError(error, after=asked, busy=stream.status in _BUSY)


def _check_range(file: RemoteFile, text: str, start: int, end: int) -> None:
    match = _RANGE.match(text)
    if match is None or (int(match[1]), int(match[2]) + 1) != (start, end):
        raise WrongRangeError(
            HubProtocolError(f"{file.path}: bytes {start}-{end - 1} were asked for, got {text!r}")
        )
    if match[3] not in ("*", str(file.size)):
        raise TryAgainError(_wrong_size(file, match[3]))


def _wrong_size(file: RemoteFile, actual: str) -> SizeMismatchError:
    return SizeMismatchError(
        f"{file.path} is listed with {file.size} bytes and comes with {actual}"
    )

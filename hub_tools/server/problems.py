"""Why the local hub refuses a request; each dialect words it its own way."""

from __future__ import annotations

from enum import Enum, auto


class Reason(Enum):
    """What is wrong with a request."""

    BAD_REQUEST = auto()
    TOKEN_WRONG = auto()
    TOKEN_MISSING = auto()
    FORBIDDEN = auto()
    REPO_NOT_FOUND = auto()
    REVISION_NOT_FOUND = auto()
    FILE_NOT_FOUND = auto()
    ROUTE_NOT_FOUND = auto()
    ALREADY_EXISTS = auto()
    STALE_PARENT = auto()
    TOO_LARGE = auto()
    RANGE = auto()
    STORE_DAMAGED = auto()


STATUS = {
    Reason.BAD_REQUEST: 400,
    Reason.TOKEN_WRONG: 401,
    Reason.TOKEN_MISSING: 401,
    Reason.FORBIDDEN: 403,
    Reason.REPO_NOT_FOUND: 404,
    Reason.REVISION_NOT_FOUND: 404,
    Reason.FILE_NOT_FOUND: 404,
    Reason.ROUTE_NOT_FOUND: 404,
    Reason.ALREADY_EXISTS: 409,
    Reason.STALE_PARENT: 412,
    Reason.TOO_LARGE: 413,
    Reason.RANGE: 416,
    Reason.STORE_DAMAGED: 500,
}


class Problem(Exception):  # noqa: N818  an answer to a client, not an error of ours
    """A request that is answered with a failure."""

    def __init__(
        self, reason: Reason, message: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.headers = reason, message, headers or {}

    @property
    def status(self) -> int:
        return STATUS[self.reason]

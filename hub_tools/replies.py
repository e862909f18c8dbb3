"""Turn a hub's refusals into errors that name the repository, the hub and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from hub_tools.errors import (
    AuthError,
    EntryNotFoundError,
    GatedError,
    HubError,
    HubProtocolError,
    HubUnreachableError,
    RateLimitedError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from hub_tools.http import Http
from hub_tools.origins import Origin

Account = Callable[[], str | None]

_LOGIN = {
    "modelscope": "Set MODELSCOPE_API_TOKEN, or run `modelscope login`",
    "huggingface": "Set HF_TOKEN, or run `hf auth login`",
}


def refusal(
    hub: str,
    http: Http,
    status: int,
    what: str,
    *,
    said: str = "",
    page: str = "",
    account: Account = lambda: None,
) -> HubError:
    """Make the error for an HTTP status of 400 or more.

    Args:
        hub: its name.
        http: how it is reached, to name its host and to know whether a token was sent.
        status: the HTTP status.
        what: what was asked for, such as a repository's id.
        said: the hub's own words.
        page: the repository's page, where access is asked for.
        account: asks the hub whose token this is.
    """
    place = f"{hub} ({Origin.of(http.endpoint).host})"
    words = f": {tame(said)}" if said else ""
    if status == 401:
        return _unknown(hub, http, place, f"{what}{words}", page, account)
    if status == 403:
        return _gated(hub, http, f"{place} does not allow", f"{what}{words}", page, account)
    if status == 404:
        return EntryNotFoundError(f"{place} has no {what}{words}")
    if status == 429:
        return RateLimitedError(f"{place} asks to slow down{words}")
    if status >= 500:
        return HubUnreachableError(f"{place} fails with {status} for {what}{words}")
    return HubProtocolError(f"{place} answered {status} for {what}{words}")


def _unknown(hub: str, http: Http, place: str, what: str, page: str, account: Account) -> AuthError:
    """Say which login is missing, or which one the hub does not take."""
    if http.token is None:
        asked = f"; access to it is asked for at {page}" if page else ""
        return AuthError(f"{place} wants a login for {what}", hint=f"{_LOGIN[hub]}{asked}.")
    name = account()
    if name:
        return AuthError(
            f"{place} does not show {what} to account {tame(name)!r}",
            hint=f"Ask for access{f' at {page}' if page else ''}, or log in as another account.",
        )
    source = f" from {http.token.source}" if http.token.source else ""
    return AuthError(
        f"{place} does not accept the token{source} for {what}",
        hint=f"It may have expired or been revoked. {_LOGIN[hub]} again.",
    )


def _gated(hub: str, http: Http, start: str, what: str, page: str, account: Account) -> GatedError:
    """Say who was refused, what to accept and where."""
    where = f" at {page}" if page else " on its page"
    if http.token is None:
        login = f"{_LOGIN[hub]}; then accept its terms, or ask for access,{where}."
        return GatedError(f"{start} {what} without a login", hint=login)
    name = account()
    who = f"account {tame(name)!r}" if name else "the account of this token"
    return GatedError(
        f"{start} {what} for {who}",
        hint=f"Log in there as that account and accept the terms, or ask for access,{where}.",
    )


def repo_not_found(
    hub: str, http: Http, repo_id: str, *, account: Account = lambda: None
) -> RepoNotFoundError:
    """Say who asked: a hub calls a private repository absent to those who may not see it."""
    place = f"{hub} ({Origin.of(http.endpoint).host})"
    if http.token is None:
        hint = f"Check owner and name. If it is private: {_LOGIN[hub]}."
        return RepoNotFoundError(f"{place} has no repository {repo_id}", hint=hint)
    name = account()
    seen = f" that account {tame(name)!r} may see" if name else ""
    return RepoNotFoundError(
        f"{place} has no repository {repo_id}{seen}",
        hint="Check owner and name; if it is private, log in as an account that may read it.",
    )


def login_wanted(hub: str, http: Http, repo_id: str) -> AuthError:
    """A hub that tells an unknown visitor nothing: private, or not there."""
    place = f"{hub} ({Origin.of(http.endpoint).host})"
    return AuthError(
        f"{place} shows {repo_id} to nobody without a login: it is private, or no such name",
        hint=f"Check owner and name; if it is private: {_LOGIN[hub]}.",
    )


def revision_not_found(
    hub: str, http: Http, repo_id: str, revision: str, known: Sequence[str]
) -> RevisionNotFoundError:
    """Name the revisions that look like the one asked for, or the first few."""
    place = f"{hub} ({Origin.of(http.endpoint).host})"
    near = difflib.get_close_matches(revision, known, n=5, cutoff=0.4) or sorted(known)[:8]
    return RevisionNotFoundError(
        f"{repo_id} on {place} has no revision {revision!r}", near=[tame(name) for name in near]
    )


def tame(text: str) -> str:
    """A hub's own words on one short line without control characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(printable.split())
    return line if len(line) <= 200 else line[:199] + "…"


def field_of(value: Any, key: str, kind: type[Any], *, where: str) -> Any:
    """Take a required field from a hub's JSON.

    Raises:
        HubProtocolError: not an object, no such key, or another type.
    """
    found = value.get(key) if isinstance(value, dict) else None
    # bool is an int to Python, and no hub means it as one
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise HubProtocolError(f"{where}: {key!r} is missing or no {kind.__name__}")
    return found


def optional_text(value: Any, key: str) -> str | None:
    """Take an optional text from a hub's JSON; empty counts as missing."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) and found else None


def names_in(value: Any, key: str, field: str) -> list[str]:
    """Collect one text field of a list of objects; what is malformed is left out."""
    rows = value.get(key) if isinstance(value, dict) else None
    found = (optional_text(row, field) for row in (rows if isinstance(rows, list) else []))
    return [name for name in found if name]

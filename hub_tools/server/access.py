"""Who may do what on the local hub: one token, and upload addresses that are keys themselves."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from http.cookies import CookieError, SimpleCookie

from hub_tools.server.http import Request
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.repositories import Repository

_UPLOAD_SECONDS = 3600


class Access:
    """Checks tokens. Without a configured token everybody may do everything."""

    def __init__(self, token: str | None, *, read_only: bool = False) -> None:
        self._token, self._read_only = token, read_only
        self._secret = secrets.token_bytes(32)  # upload addresses die with the process

    def is_token(self, token: str) -> bool:
        if self._token is None:
            return bool(token)
        return hmac.compare_digest(token.encode(), self._token.encode())

    def check_presented(self, request: Request) -> None:
        """Refuse a wrong token, even where none is needed: its owner should learn of it.

        Raises:
            Problem: TOKEN_WRONG.
        """
        token = presented_token(request)
        if token and not self.is_token(token):
            raise Problem(Reason.TOKEN_WRONG, "Invalid credentials in Authorization header")

    def may_read(self, request: Request, repo: Repository) -> None:
        """Raise TOKEN_MISSING for a private repository unless the token is there."""
        if repo.private and self._token is not None and not presented_token(request):
            raise Problem(Reason.TOKEN_MISSING, "This repository is private and needs a token")

    def may_write(self, request: Request) -> None:
        """Allow a change.

        Raises:
            Problem: no token, a hub that only reads, or a web page of another origin.
        """
        foreign = request.header("Origin")
        if foreign and foreign != request.origin:
            # without a token any web page could otherwise write to a hub on this machine
            raise Problem(Reason.FORBIDDEN, "A page of another origin may not write here")
        if self._token is not None and not presented_token(request):
            raise Problem(Reason.TOKEN_MISSING, "Writing to this hub needs a token")
        if self._read_only:
            raise Problem(Reason.FORBIDDEN, "This hub is read-only")

    def require_token(self, request: Request) -> None:
        """Raise TOKEN_MISSING unless a token was sent; a wrong one is refused earlier."""
        if not presented_token(request):
            raise Problem(Reason.TOKEN_MISSING, "This call needs a token")

    def upload_path(self, sha256: str, size: int) -> str:
        """An address that takes exactly these bytes for an hour, without a token."""
        expires = int(time.time()) + _UPLOAD_SECONDS
        return f"/-/upload/{sha256}/{size}/{expires}/{self._signature(sha256, size, expires)}"

    def check_upload(self, sha256: str, size: str, expires: str, signature: str) -> None:
        """Check the parts of an upload address.

        Raises:
            Problem: FORBIDDEN, when it was not made here or is too old.
        """
        if not (size.isdecimal() and expires.isdecimal()):
            raise Problem(Reason.FORBIDDEN, "not an upload address of this hub")
        expected = self._signature(sha256, int(size), int(expires))
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise Problem(Reason.FORBIDDEN, "not an upload address of this hub")
        if int(expires) < time.time():
            raise Problem(Reason.FORBIDDEN, "this upload address has expired")

    def _signature(self, sha256: str, size: int, expires: int) -> str:
        text = f"{sha256}:{size}:{expires}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


def presented_token(request: Request) -> str:
    """The token of a request: a Bearer header, or the cookie that ModelScope's clients send."""
    scheme, _, token = request.header("Authorization").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    try:
        cookie = SimpleCookie(request.header("Cookie")).get("m_session_id")
    except CookieError:
        return ""
    return cookie.value if cookie else ""

"""Uploads to the local hub: ask what is missing, send it to an address that is its own key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hub_tools.server.http import Request, Response, Route, json_response
from hub_tools.server.hub import Hub
from hub_tools.server.problems import Problem, Reason
from hub_tools.server.store import BlobMismatchError

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MOST_OBJECTS = 1000
_LARGEST = 1 << 50  # bytes; a size beyond this is a mistake or an attack


@dataclass(frozen=True, slots=True)
class LfsObject:
    """A file that a client announces."""

    oid: str
    size: int


def lfs_object(value: Any) -> LfsObject:
    """Check an announced object.

    Raises:
        Problem: no sha256, or no sensible size.
    """
    oid = value.get("oid") if isinstance(value, dict) else None
    size = value.get("size") if isinstance(value, dict) else None
    if not isinstance(oid, str) or not _SHA256.match(oid):
        raise Problem(Reason.BAD_REQUEST, "an object needs its sha256 as oid")
    if type(size) is not int or not 0 <= size < _LARGEST:
        raise Problem(Reason.BAD_REQUEST, f"object {oid[:12]} needs its size")
    return LfsObject(oid, size)


def batch(hub: Hub, request: Request, *, verify: str | None) -> dict[str, Any]:
    """Answer an upload batch: an address for each missing object, none for those we have.

    Args:
        hub: where the objects go.
        request: an LFS batch request of either hub's clients.
        verify: where the client should confirm an upload, if its dialect does.

    Raises:
        Problem: not an upload, or not a list of objects.
    """
    value = request.json()
    objects = value.get("objects")
    if value.get("operation") != "upload" or not isinstance(objects, list):
        raise Problem(Reason.BAD_REQUEST, "only upload batches are served here")
    if len(objects) > _MOST_OBJECTS or value.get("hash_algo", "sha256") != "sha256":
        raise Problem(Reason.BAD_REQUEST, "too many objects, or not sha256")
    answers = [_offer(hub, request, lfs_object(item), verify) for item in objects]
    return {"transfer": "basic", "objects": answers}


def _offer(hub: Hub, request: Request, item: LfsObject, verify: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"oid": item.oid, "size": item.size}
    if hub.blobs.has(item.oid, item.size):
        return answer
    href = request.origin + hub.access.upload_path(item.oid, item.size)
    answer["actions"] = {"upload": {"href": href, "header": {}}}
    if verify is not None:
        answer["actions"]["verify"] = {"href": request.origin + verify}
    return answer


class Uploads:
    """The handler behind upload addresses."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def routes(self) -> list[Route]:
        return [Route("PUT", "/-/upload/{oid}/{size}/{expires}/{signature}", self.receive)]

    def receive(self, request: Request, values: Mapping[str, str]) -> Response:
        """Store a body while hashing it; what is not the announced file leaves nothing behind."""
        oid, size = values["oid"], values["size"]
        self._hub.access.check_upload(oid, size, values["expires"], values["signature"])
        announced = request.body.length
        if announced is not None and announced != int(size):
            raise Problem(Reason.BAD_REQUEST, f"{announced} bytes come, {size} were announced")
        if not self._hub.blobs.has(oid, int(size)):
            try:
                self._hub.blobs.receive(request.body.chunks(), size=int(size), sha256=oid)
            except BlobMismatchError as error:
                raise Problem(Reason.BAD_REQUEST, str(error)) from error
        return json_response({"Code": 200, "Success": True}, headers={"ETag": f'"{oid}"'})

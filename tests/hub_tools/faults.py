"""More faults for `faulty_hub`, by what the fault table calls them."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

from tests.hub_tools.faulty_hub import Answer, Fault

LISTINGS = {"huggingface": "/tree/", "modelscope": "/repo/files"}  # in a listing's URL


def both(*faults: Fault) -> Fault:
    """Several faults at once."""

    def fault(answer: Answer) -> Answer:
        for each in faults:
            answer = each(answer)
        return answer

    return fault


def stalled(at: int, seconds: float) -> Fault:
    """Send nothing for a while after `at` bytes, the connection open."""

    def fault(answer: Answer) -> Answer:
        answer.hold_at, answer.hold_for = at, seconds
        return answer

    return fault


def trickling(at: int, rate: int) -> Fault:
    """After `at` bytes only `rate` bytes per second."""

    def fault(answer: Answer) -> Answer:
        answer.pause_from, answer.pause, answer.piece = at, 0.5, rate // 2
        return answer

    return fault


def limited(rate: int) -> Fault:
    """At most `rate` bytes per second on this connection."""

    def fault(answer: Answer) -> Answer:
        answer.pause, answer.piece = 0.02, max(1, rate // 50)
        return answer

    return fault


def delayed(seconds: float) -> Fault:
    def fault(answer: Answer) -> Answer:
        answer.wait = seconds
        return answer

    return fault


def burning(answer: Answer) -> Answer:
    """Let the signed URL that was asked for expire."""
    answer.burns = True
    return answer


def gzipped(answer: Answer) -> Answer:
    """Compress although nobody asked for it."""
    answer.body = gzip.compress(answer.body, compresslevel=1)
    answer.headers["Content-Encoding"] = "gzip"
    return answer


def of_unknown_length(answer: Answer) -> Answer:
    answer.length_unknown = True
    return answer


def shorter(by: int) -> Fault:
    """Leave out the last bytes, with a Content-Length that agrees."""

    def fault(answer: Answer) -> Answer:
        answer.body = answer.body[:-by]
        return answer

    return fault


def other_bytes(answer: Answer) -> Answer:
    """What was asked for, of a file with the same length and other bytes."""
    answer.body = bytes(byte ^ 0x5A for byte in answer.body)
    return answer


def other_range(answer: Answer) -> Answer:
    """The right number of bytes, said to be from elsewhere in the file, and from elsewhere."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    if found is None:
        return answer
    start, end, size = map(int, found.groups())
    shift = 7 if start >= 7 else 0
    answer.headers["Content-Range"] = f"bytes {start - shift}-{end - shift}/{size}"
    answer.body = b"\0" * shift + answer.body[: len(answer.body) - shift]
    return answer


def in_a_loop(answer: Answer) -> Answer:
    """Redirect to the same path, with one more turn in the query."""
    return Answer(302, {"Location": "?FilePath=model.safetensors&again=1"}, b"")


def a_web_page(answer: Answer) -> Answer:
    """A login page where JSON or a file should be."""
    return Answer(200, {"Content-Type": "text/html"}, b"<html><body>Please log in.</body></html>")


_XET_HASH = "5c" * 32


def offered_by_xet(answer: Answer) -> Answer:
    """What Hugging Face adds for clients that can do without plain HTTP."""
    answer.headers["X-Xet-Hash"] = _XET_HASH
    answer.headers["Link"] = '<http://127.0.0.1:1/xet-read-token>; rel="xet-auth"'
    return answer


def listed_with_xet(answer: Answer) -> Answer:
    def hashed(file: Any) -> Any:
        return file | {"xetHash": _XET_HASH} if file.get("lfs") else file

    return _listing(lambda files: [hashed(file) for file in files])(answer)


def renamed(old: str, new: str) -> Fault:
    """A listing that gives one file another path, in either dialect."""
    return _listing(lambda files: [_renamed(file, old, new) for file in files])


def listed_twice(path: str, again: str) -> Fault:
    """A listing that has a file under a second path, too."""

    def change(files: list[Any]) -> list[Any]:
        twins = [_renamed(file, path, again) for file in files if _path(file) == path]
        return files + twins

    return _listing(change)


def _listing(change: Callable[[list[Any]], list[Any]]) -> Fault:
    def fault(answer: Answer) -> Answer:
        value = json.loads(answer.body)
        if isinstance(value, list):
            value = change(value)
        else:
            value["Data"]["Files"] = change(value["Data"]["Files"])
        answer.body = json.dumps(value).encode()
        return answer

    return fault


def _path(file: Any) -> str:
    return str(file.get("path") or file.get("Path"))


def _renamed(file: Any, old: str, new: str) -> Any:
    if _path(file) != old:
        return file
    changed = dict(file)
    for key in ("path", "Path"):
        if key in changed:
            changed[key] = new
    if "Name" in changed:
        changed["Name"] = new.rpartition("/")[2]
    return changed

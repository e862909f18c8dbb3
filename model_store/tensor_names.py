"""Which names a tensor may have: those that print as what they are and look like no path out."""

from __future__ import annotations

import re

_MAX_LENGTH = 1000
_CLIMBS = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:[/\\]")


def name_problem(name: object) -> str | None:
    """Say what is wrong with a tensor's name; None when nothing is.

    Exporters make file names of tensor names, and terminals obey control characters.
    """
    if type(name) is not str:
        return "has a name that is no plain text"
    if not name:
        return "has an empty name"
    if len(name) > _MAX_LENGTH:
        return f"has a name of {len(name)} characters"
    if not name.isprintable():
        return "has a name that is no plain text: it holds control characters"
    if _CLIMBS.search(name):
        return "has a name that reads as a path out of a folder"
    return None

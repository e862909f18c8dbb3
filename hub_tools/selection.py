"""Which files of a repository are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from model_store.canonical import canonical_digest


@dataclass(frozen=True, slots=True)
class Selection:
    """Shell patterns over whole paths; `*` crosses slashes, and `folder/` takes all below it."""

    include: tuple[str, ...] = ()  # none: everything
    exclude: tuple[str, ...] = ()

    def wants(self, path: str) -> bool:
        """Whether a path is included, and not excluded."""
        return (not self.include or _matches(path, self.include)) and not _matches(
            path, self.exclude
        )

    @property
    def suffix(self) -> str:
        """What a partial snapshot's folder name ends in: it must not pass for the whole."""
        if not self.include and not self.exclude:
            return ""
        patterns = {"include": sorted(self.include), "exclude": sorted(self.exclude)}
        return f"-only-{canonical_digest(patterns)[:12]}"


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)
        for pattern in patterns
    )

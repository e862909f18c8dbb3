"""Where things live under FERRY_HOME: blobs, snapshots, refs, locks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Home:
    """The store's root; every path under it is made here and nowhere else."""

    root: Path

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def git_blob(self, sha1: str) -> Path:
        """A second name of a blob whose hub listed it by its git blob id only."""
        return self.root / "blobs" / "git-sha1" / sha1[:2] / sha1

    def incoming(self, key: str) -> Path:
        """Where a file lands that came without any digest."""
        return self.root / "incoming" / key

    def snapshot(self, hub: str, owner: str, name: str, commit: str) -> Path:
        # "listing-sha256:…" has a colon, which Windows does not allow in a name
        return self.repository(hub, owner, name) / commit.replace(":", "-")

    def repository(self, hub: str, owner: str, name: str) -> Path:
        return self.root / "snapshots" / hub / owner / name

    def ref(self, hub: str, owner: str, name: str, revision: str) -> Path:
        """The file that remembers which commit a revision was pinned to last."""
        quoted = quote(revision, safe="")
        if not quoted.strip("."):  # "..", which quoting leaves alone, would climb out
            quoted = quoted.replace(".", "%2E")
        return self.root / "refs" / hub / owner / name / quoted

    def lock(self, name: str) -> Path:
        return self.root / "locks" / (name.replace("/", "--") + ".lock")


def home() -> Home:
    """The user's store: FERRY_HOME, or ~/.cache/modelferry."""
    configured = os.environ.get("FERRY_HOME")
    root = Path(configured).expanduser() if configured else Path.home() / ".cache" / "modelferry"
    return Home(root.absolute())

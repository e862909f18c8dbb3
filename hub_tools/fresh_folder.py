"""Give fetched files their names in a folder that this process has just made."""

from __future__ import annotations

import os
from pathlib import Path

from model_store.files import copy_file
from model_store.paths import check_relative_path


class FreshFolder:
    """Nobody else has written there, so no link can be planted, and each folder is made once.

    `model_store.paths.inside` looks at every folder on the way for every file, which is right for a
    folder of the user's and costs ten thousand small files more than their transfer.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._made = {""}

    def link(self, source: Path, relative: str, *, mode: int | None = None) -> None:
        """Give bytes a second name, or copy them where the file system cannot.

        Args:
            source: where they are.
            relative: the name, relative to the folder.
            mode: the file's permissions then, which its other names share.
        """
        place = self._place(relative)
        try:
            os.link(source, place)
        except OSError:
            copy_file(source, Path(place))
        if mode is not None:
            os.chmod(place, mode)  # noqa: PTH101  a Path per file is what this class avoids

    def copy(self, source: Path, relative: str) -> None:
        """Copy bytes; see `copy_file`."""
        copy_file(source, Path(self._place(relative)))

    def _place(self, relative: str) -> str:
        check_relative_path(relative)
        parent = relative.rpartition("/")[0]
        if parent not in self._made:
            os.makedirs(f"{self._root}/{parent}", exist_ok=True)  # noqa: PTH103
            self._made.add(parent)
        return f"{self._root}/{relative}"

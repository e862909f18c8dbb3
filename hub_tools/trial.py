"""Find out which source served wrong bytes of a file, and get the right ones.

A digest speaks of the whole file, so one source after the other must bring all of it: what it
brought already stays, the rest is fetched again from it alone. Once the digest is right, the parts
that changed tell who served them wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hub_tools.partial_file import UNKNOWN_SERVER, PartialFile
from model_store.errors import DigestMismatchError


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What a part was before it was fetched again, and who had brought it."""

    part: int
    digest: bytes
    servers: int  # bits


@dataclass(slots=True)
class Trial:
    """The search for one file.

    Args:
        candidates: indices of the sources that can bring the whole file, the most trusted first.
        mismatch: what began it.
    """

    candidates: list[int]
    mismatch: DigestMismatchError
    suspicions: list[Suspicion] = field(default_factory=list)

    def next_round(self, partial: PartialFile) -> tuple[int, Sequence[int]] | None:
        """The source that must bring the whole file now, and the parts to fetch again from it.

        Returns:
            None when every source had its turn.
        """
        while self.candidates:
            index = self.candidates.pop(0)
            servers = partial.servers()
            parts = [part for part, bits in enumerate(servers) if bits != 1 << index]
            if not parts and self.candidates:
                continue  # the wrong bytes are all its own: the next one's turn
            parts = parts or list(range(len(servers)))
            self.suspicions += [
                Suspicion(part, partial.part_digest(part), servers[part]) for part in parts
            ]
            return index, parts
        return None

    def wrong_parts(self, partial: PartialFile) -> dict[int, list[int]]:
        """Source -> parts that it served wrong; the file is right now."""
        found: dict[int, set[int]] = {}
        now: dict[int, bytes] = {}
        for suspicion in self.suspicions:
            part = suspicion.part
            if part not in now:
                now[part] = partial.part_digest(part)
            if now[part] == suspicion.digest:
                continue
            for index in range(UNKNOWN_SERVER + 1):
                if suspicion.servers >> index & 1:
                    found.setdefault(index, set()).add(part)
        return {index: sorted(parts) for index, parts in found.items()}


def shown_ranges(parts: Sequence[int], part_size: int, size: int) -> str:
    """Byte ranges for a report; neighbours are joined, and many are cut short."""
    ranges: list[list[int]] = []
    for part in parts:
        if ranges and ranges[-1][1] == part:
            ranges[-1][1] = part + 1
        else:
            ranges.append([part, part + 1])
    shown = [f"{start * part_size}-{min(end * part_size, size) - 1}" for start, end in ranges[:4]]
    return ", ".join(shown) + (", …" if len(ranges) > 4 else "")

"""Which probes run together: alike ones, so that padding wastes little.

The composition follows from the probes alone. Both sides, every process and every resumed run then
compute the same sums in the same order, and equal models give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from verification.probes import Probe


def plan_batches(probes: Sequence[Probe], size: int) -> list[tuple[int, ...]]:
    """Indices of the probes of each batch; a batch asks for boxes in all its rows or in none."""

    def kind(index: int) -> tuple[bool, int]:
        return probes[index].target is not None, len(probes[index].images)

    def order(index: int) -> tuple[bool, int, str, int, int]:
        probe = probes[index]
        return *kind(index), probe.language, len(probe.told), index

    batches: list[tuple[int, ...]] = []
    for _, alike in groupby(sorted(range(len(probes)), key=order), key=kind):
        members = list(alike)
        batches += [tuple(members[i : i + size]) for i in range(0, len(members), size)]
    return batches

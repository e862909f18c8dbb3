"""Seeded choices for drawn scenes, in splits that share no seed.

Integers only, taken from the raw words of PCG64: the one part of numpy's generators whose stream is
promised. The split is part of the seed, so whatever number a user gives, no two splits ever draw
from the same stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from numpy.random import PCG64

T = TypeVar("T")
Split = Literal["train", "calibration", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "validation", "test")


class Dice:
    """A stream of choices; the same seed gives the same ones on every machine."""

    def __init__(self, *seed: int) -> None:
        self._words = PCG64(list(seed))

    def below(self, limit: int) -> int:
        # the bias of a 64-bit remainder is far below anything a sample could show
        return int(self._words.random_raw()) % limit

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def take(self, items: Sequence[T], count: int) -> list[T]:
        """Pick `count` different items, in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def split_dice(split: Split, *seed: int) -> Dice:
    """The dice of one sample of a split."""
    return Dice(SPLITS.index(split), *seed)

"""Go over columns in order, with most of what one means for later ones done by matrix products.

Column by column, each rank-one update of all later columns reads and writes far more than it
computes. Split in halves instead: when the first half is done, all it means for the second is one
product; in each half the same again, until a few columns are left.
"""

from __future__ import annotations

from collections.abc import Callable

FEW = 32  # columns of which each is told what those before it mean, one by one


def halve(
    columns: int,
    few: int,
    run: Callable[[int, int], None],
    pass_on: Callable[[int, int, int], None],
) -> None:
    """Call `run` on all spans [start, stop), in order; both are multiples of `few`, but the end.

    Args:
        columns: how many there are.
        few: columns of a span that is not split further.
        run: works through [start, stop).
        pass_on: tells [middle, stop) what [start, middle), now done, means for it. Every column
            has been told of all earlier spans when it is run.
    """

    def span(start: int, stop: int) -> None:
        if stop - start <= few:
            run(start, stop)
            return
        spans = -(-(stop - start) // few)
        middle = start + (spans + 1) // 2 * few
        span(start, middle)
        pass_on(start, middle, stop)
        span(middle, stop)

    span(0, columns)

"""Let several forward passes advance together, and meet at chosen places.

Each pass runs in a thread of its own, but only one at a time, in a fixed order: threads serve to
stop a pass in the middle of a forward, not to be fast, and the result does not depend on timing.
When all have stopped, what they brought is handled at once and each goes on with its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from quantization.errors import UnsupportedModelError

T = TypeVar("T")
_here = threading.local()


class _Abandoned(BaseException):
    """Ends a pass that nobody waits for any more."""


class _Pass(Generic[T]):
    """One forward pass that can be stopped."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.place: str | None = None  # where it stopped; None when it is done
        self.brought: Tensor | None = None
        self.result: T | None = None
        self._work = work
        self._error: BaseException | None = None
        self._answer: Tensor | None = None
        self._abandoned = False
        self._go, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self, answer: Tensor | None = None) -> None:
        """Run to the next place or to the end; an exception of the pass is raised here."""
        self._answer, self.brought = answer, None
        self._stopped.clear()
        self._go.set()
        self._stopped.wait()
        if self._error is not None:
            raise self._error

    def stop(self, place: str, brought: Tensor) -> Tensor:
        """Called inside the pass: hand over, wait for the answer."""
        self.place, self.brought = place, brought
        self._stopped.set()
        self._go.wait()
        self._go.clear()
        if self._abandoned:
            raise _Abandoned
        answer, self._answer = self._answer, None
        assert answer is not None  # noqa: S101  only the first advance has none
        return answer

    def abandon(self) -> None:
        """End the pass wherever it is."""
        self._abandoned = True
        self._go.set()
        self._thread.join()

    def _run(self) -> None:
        self._go.wait()
        self._go.clear()
        _here.running = self
        try:
            if not self._abandoned:
                with torch.no_grad():  # the mode belongs to the thread
                    self.result = self._work()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by advance()
            self._error = error
        finally:
            self.place = None
            self._stopped.set()


def meet(place: str, brought: Tensor) -> Tensor:
    """Stop the pass that this is called in until all have stopped; return its answer."""
    running: _Pass[Any] = _here.running
    return running.stop(place, brought)


def together(
    works: Sequence[Callable[[], T]],
    handle: Callable[[str, list[Tensor]], Callable[[int, Tensor], Tensor]],
) -> Iterator[T]:
    """Run passes side by side and yield their results, in order.

    Args:
        works: the passes; they stop by calling `meet`.
        handle: gets a place and what each pass brought there; returns what makes the answer of
            pass number n, which is called just before that pass goes on.

    Raises:
        UnsupportedModelError: the passes stopped at different places.
    """
    passes = [_Pass(work) for work in works]
    try:
        for one in passes:
            one.advance()
        while passes[0].place is not None:
            place = passes[0].place
            if any(one.place != place for one in passes):
                raise UnsupportedModelError(f"not every calibration sample passes {place}")
            brought = [one.brought for one in passes if one.brought is not None]
            answer = handle(place, brought)
            for number, one in enumerate(passes):
                mine, brought[number] = brought[number], torch.empty(0)
                one.advance(answer(number, mine))
        if any(one.place is not None for one in passes):
            raise UnsupportedModelError("not every calibration sample takes the same way")
        for one in passes:
            assert one.result is not None  # noqa: S101  it is done
            yield one.result
    finally:
        for one in passes:
            one.abandon()

"""Show a transfer: what came, and how fast from where."""

from __future__ import annotations

import time
from collections import deque

from hub_tools.scheduling import Schedule
from model_store.progress import Task, human_bytes

_EVERY = 0.5  # seconds
_WINDOW = 5.0  # seconds over which a rate is measured


class TransferProgress:
    """Reports a schedule to a task; for one thread.

    Args:
        task: where to.
        schedule: what is asked.
        kept: bytes of earlier runs that the task knows of already.
    """

    def __init__(self, task: Task, schedule: Schedule, kept: int) -> None:
        self._task, self._schedule = task, schedule
        self._told = kept
        self._samples: deque[tuple[float, list[int]]] = deque()

    def show(self, *, final: bool = False) -> None:
        """Tell the task what is new; the last time, what came from where in place of rates."""
        received = self._schedule.received
        now = time.monotonic()
        counts = [state.bytes for state in self._schedule.states]
        if final or not self._samples or now - self._samples[-1][0] >= _EVERY:
            self._samples.append((now, counts))
            while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
                self._samples.popleft()
            self._note(now, counts, final=final)
        # before files are opened, what an earlier run left is not counted here yet
        if received > self._told or final:
            self._task.advance(received - self._told)
            self._told = received

    def _note(self, now: float, counts: list[int], *, final: bool) -> None:
        then, before = self._samples[0]
        seconds = max(now - then, 1e-3)
        rows, words = [], []
        for state, new, old in zip(self._schedule.states, counts, before, strict=True):
            rate = (new - old) / seconds
            row = {
                "source": state.source.label,
                "bytes": new,
                "rate": round(rate),
                "connections": state.active,
                "failures": state.failures,
            }
            rows.append(row)
            pace = f"{human_bytes(int(rate))}/s ×{state.active}"
            words.append(f"{state.source.label} {human_bytes(new) if final else pace}")
        self._task.note(" · ".join(words), sources=rows)

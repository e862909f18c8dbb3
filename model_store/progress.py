"""Progress that a library can report without knowing who watches: nobody, a terminal or a log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TextIO


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done; may be called from any thread."""
        ...

    def note(self, text: str, **fields: object) -> None:
        """Say what the task is at now, in a few words, and in JSON fields for programs."""
        ...


class Progress(Protocol):
    """Where work is reported to."""

    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> AbstractContextManager[Task]:
        """Open a task; `total` is in `unit` ("B" for bytes), None when unknown.

        `done` of it is there from an earlier run: it counts for the total, not for the rate.
        """
        ...

    def log(self, text: str) -> None:
        """Say one thing that is worth a line."""
        ...


class _NoTask:
    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, text: str, **fields: object) -> None:
        pass


class NoProgress:
    """Reports to nobody; the default of every library function."""

    @contextmanager
    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> Iterator[Task]:
        yield _NoTask()

    def log(self, text: str) -> None:
        pass


class _Counter:
    def __init__(self, done: int = 0) -> None:
        self.done = self.kept = done
        self.started = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, amount: int = 1) -> None:
        with self._lock:
            self.done += amount

    def note(self, text: str, **fields: object) -> None:
        pass

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class PlainProgress:
    """One line when a task ends: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> Iterator[Task]:
        counter = _Counter(done)
        yield counter
        amount = _amount(counter.done - counter.kept, unit)
        self.log(f"{label}: {amount} in {counter.seconds:.1f} s")

    def log(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _JsonTask(_Counter):
    """Writes at most two lines a second, so that a log of a long transfer stays readable."""

    def __init__(
        self, owner: JsonProgress, label: str, total: int | None, unit: str, done: int
    ) -> None:
        super().__init__(done)
        self._owner, self._label, self._total, self._unit = owner, label, total, unit
        self._fields: dict[str, object] = {}
        self._last = 0.0

    def advance(self, amount: int = 1) -> None:
        super().advance(amount)
        if time.monotonic() - self._last >= 0.5:
            self._last = time.monotonic()
            self.write("progress")

    def note(self, text: str, **fields: object) -> None:
        self._fields = fields

    def write(self, event: str) -> None:
        rate = (self.done - self.kept) / self.seconds if self.seconds > 0 else 0.0
        line: dict[str, Any] = {
            "event": event,
            "task": self._label,
            "done": self.done,
            "total": self._total,
            "unit": self._unit,
            "seconds": round(self.seconds, 3),
            "rate": round(rate, 3),
        }
        if self._total and rate:
            line["eta_seconds"] = round(max(self._total - self.done, 0) / rate, 1)
        self._owner.write(line | self._fields)


class JsonProgress:
    """JSON lines: for programs that watch."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> Iterator[Task]:
        task = _JsonTask(self, label, total, unit, done)
        task.write("start")
        yield task
        task.write("end")

    def log(self, text: str) -> None:
        self.write({"event": "log", "text": text})

    def write(self, line: dict[str, Any]) -> None:
        print(json.dumps(line, ensure_ascii=False), file=self._stream, flush=True)


class BarProgress:
    """Bars with rate and time left, drawn by rich; imported only when a terminal watches."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, stderr=False)

    @contextmanager
    def task(
        self, label: str, total: int | None = None, *, unit: str = "", done: int = 0
    ) -> Iterator[Task]:
        from rich import progress as bars
        from rich.console import RenderableType
        from rich.table import Column
        from rich.text import Text

        class Bars(bars.Progress):
            """Bars, and below each what its task is at: a line of its own is never squeezed."""

            def get_renderables(self) -> Iterable[RenderableType]:
                yield self.make_tasks_table(self.tasks)
                for task in self.tasks:
                    if task.fields["note"]:
                        yield Text(f"  {task.fields['note']}", "dim", overflow="ellipsis")

        whole = Column(no_wrap=True)
        amount: list[bars.ProgressColumn] = (
            [bars.DownloadColumn(table_column=whole), bars.TransferSpeedColumn(whole)]
            if unit == "B"
            else [bars.MofNCompleteColumn(table_column=whole), bars.TextColumn(unit)]
        )
        with Bars(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=None),
            *amount,
            bars.TimeElapsedColumn(whole),
            bars.TextColumn("left", table_column=whole),
            bars.TimeRemainingColumn(table_column=whole),
            console=self._console,
            expand=True,
        ) as display:
            yield _BarTask(display, display.add_task(label, total=total, completed=done, note=""))

    def log(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


class _BarTask:
    def __init__(self, display: Any, task_id: Any) -> None:
        self._display, self._id = display, task_id

    def advance(self, amount: int = 1) -> None:
        self._display.advance(self._id, amount)

    def note(self, text: str, **fields: object) -> None:
        self._display.update(self._id, note=text)


def choose_progress(kind: str, *, quiet: bool, stream: TextIO) -> Progress:
    """Pick a display: `kind` is auto, bar, plain or json; auto draws bars on a terminal only."""
    if quiet:
        return NoProgress()
    if kind == "json":
        return JsonProgress(stream)
    if kind == "bar" or (kind == "auto" and stream.isatty()):
        return BarProgress(stream)
    return PlainProgress(stream)


def _amount(count: int, unit: str) -> str:
    return human_bytes(count) if unit == "B" else f"{count} {unit}".rstrip()


def human_bytes(count: int) -> str:
    """Render a byte count in decimal units, as the hubs' pages do."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")

"""Progress: silent, plain, JSON lines or bars; always on the stream it was given."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from model_store.progress import (
    BarProgress,
    JsonProgress,
    NoProgress,
    PlainProgress,
    Progress,
    choose_progress,
    human_bytes,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    with progress.task("copy", 2000, unit="B") as task:
        task.note("shard 1")
        task.advance(500)
        task.advance(1500)
    progress.log("done [here]")


@pytest.mark.parametrize(
    ("kind", "stream", "expected"),
    [
        ("auto", Terminal(), BarProgress),
        ("auto", io.StringIO(), PlainProgress),
        ("bar", io.StringIO(), BarProgress),
        ("plain", Terminal(), PlainProgress),
        ("json", Terminal(), JsonProgress),
    ],
)
def test_the_display_follows_flag_and_terminal(
    kind: str, stream: io.StringIO, expected: type
) -> None:
    assert type(choose_progress(kind, quiet=False, stream=stream)) is expected
    assert type(choose_progress(kind, quiet=True, stream=stream)) is NoProgress


def test_plain_progress_writes_one_line_per_task() -> None:
    stream = io.StringIO()

    work(PlainProgress(stream))

    task, log = stream.getvalue().splitlines()
    assert task.startswith("copy: 2.0 kB in ")
    assert log == "done [here]"


def test_json_progress_writes_lines_that_programs_read() -> None:
    stream = io.StringIO()

    work(JsonProgress(stream))

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["start", "progress", "end", "log"]
    assert lines[2]["done"] == lines[2]["total"] == 2000
    assert lines[3]["text"] == "done [here]"


def test_bars_show_label_and_log_text_as_it_is() -> None:
    stream = io.StringIO()

    work(BarProgress(stream))

    assert "copy" in stream.getvalue()
    assert "done [here]" in stream.getvalue()


def test_many_threads_may_advance_one_task() -> None:
    stream = io.StringIO()

    with (
        JsonProgress(stream).task("hash", unit="files") as task,
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in range(2000):
            pool.submit(task.advance)

    assert json.loads(stream.getvalue().splitlines()[-1])["done"] == 2000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_731_786_240, "9.7 GB"),
        (2 * 10**13, "20000.0 GB"),
    ],
)
def test_byte_counts_read_as_on_the_hubs(count: int, text: str) -> None:
    assert human_bytes(count) == text

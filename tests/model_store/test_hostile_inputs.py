"""Every hostile input: refused in little time and memory, named, and nothing is written."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from tests.model_store.hostile import Hostile
from tests.model_store.hostile_table import ELSEWHERE, EVERY, PAGE, page, refusal

MOST_MEMORY = 64 << 20


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_size) for path in folder.rglob("*"))


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.parametrize("bad", EVERY, ids=lambda bad: bad.label)
def test_a_refusal_is_quick_and_small_names_the_file_and_writes_nothing(
    tmp_path: Path, bad: Hostile
) -> None:
    path = bad.write(tmp_path)
    before = listing(tmp_path)
    size = sum(length for _, length in before)

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    resident_before = resident("VmRSS")
    started = time.thread_time()
    said = refusal(path)
    seconds = time.thread_time() - started
    grown = resident("VmHWM") - resident_before

    assert any(Path(name).name in said for name, _ in before)
    assert seconds < 0.5 + size / 1e6
    assert grown < MOST_MEMORY
    assert listing(tmp_path) == before


def test_no_two_inputs_share_a_label() -> None:
    labels = [bad.label for bad in EVERY]

    assert sorted(labels) == sorted(set(labels))
    assert set(ELSEWHERE) <= set(labels)


def test_the_page_of_hostile_inputs_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()

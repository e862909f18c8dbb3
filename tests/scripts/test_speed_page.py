import json

import pytest

from benchmarks import qwen_vl_gpu
from scripts import speed_page


def test_the_page_shows_the_committed_results() -> None:
    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.render()


def test_the_gpu_benchmark_runs_as_a_toy_on_a_processor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--device", "cpu", "--tiny", "--no-compile", "--runs", "1", "--batches", "2"]

    assert qwen_vl_gpu.main([*flags, "--kernels", "reference"]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row["layers"]) for row in rows] == [
        ("bf16", "Linear"),
        ("int4", "QuantizedLinear"),
    ]
    size = qwen_vl_gpu.TINY
    head = 2 * size.hidden * size.vocab
    assert all(row["bytes_per_step"] > head for row in rows)
    assert all(row["tokens_per_s"] > 0 and "share_of_limit" not in row for row in rows)
    assert rows[1]["bytes_per_step"] < rows[0]["bytes_per_step"]

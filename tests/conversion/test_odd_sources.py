"""Sources that contradict themselves: refused before anything is written, unless allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion import reshard, to_safetensors
from model_store.manifest import Manifest, scan, verify_snapshot, write_manifest


def _source(folder: Path, *, total: int = 48, **config: Any) -> Path:
    folder.mkdir()
    torch.save({"a": torch.zeros(4)}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(8)}, folder / "pytorch_model-00002-of-00002.bin")
    index = {
        "metadata": {"total_size": total},
        "weight_map": {
            "a": "pytorch_model-00001-of-00002.bin",
            "b": "pytorch_model-00002-of-00002.bin",
        },
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32"} | config))
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


_ODD: list[tuple[dict[str, Any], str]] = [
    ({"total": 47}, "the index says total_size 47; the tensors take 48 bytes"),
    ({"torch_dtype": "float64"}, "config.json says float64; the tensors are F32"),
    ({"auto_map": {"AutoModel": "some/one--m.M"}}, "code from another repository: 'some/one--m.M'"),
]


@pytest.mark.parametrize(("changes", "reason"), _ODD)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("command", [to_safetensors, reshard])
def test_it_is_refused_with_one_line_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: Any,
    dry: list[str],
    changes: dict[str, Any],
    reason: str,
) -> None:
    source = _source(tmp_path / "s", **changes)

    code = command.main([str(source), "--into", str(tmp_path / "t"), *dry])

    said = capsys.readouterr()
    assert code == 4
    assert said.out == ""
    assert reason in said.err
    assert "--allow-odd" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(("changes", "reason"), _ODD)
def test_it_is_taken_where_that_is_allowed_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    source = _source(tmp_path / "s", **changes)

    code = to_safetensors.main([str(source), "--into", str(tmp_path / "t"), "--allow-odd"])

    assert code == 0
    assert reason in capsys.readouterr().err
    assert reason in (tmp_path / "t" / "CHANGES.md").read_text()
    verify_snapshot(tmp_path / "t")


def test_a_true_source_needs_no_leave(tmp_path: Path) -> None:
    source = _source(tmp_path / "s")

    assert to_safetensors.main([str(source), "--into", str(tmp_path / "t")]) == 0
    assert "Of the source" not in (tmp_path / "t" / "CHANGES.md").read_text()

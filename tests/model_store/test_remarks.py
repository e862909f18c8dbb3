"""What is odd and still read: wrong totals, other dtypes, code from elsewhere, NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.nonfinite import NonFinite, count_nonfinite
from model_store.remarks import remarks
from model_store.tensors import from_bits
from tests.model_store.hostile_folders import index, shards


def said(folder: Path) -> str:
    with open_checkpoint(folder) as checkpoint:
        return "\n".join(remarks(checkpoint, folder))


def config(folder: Path, **values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_true_checkpoint_gives_no_remark(tmp_path: Path) -> None:
    folder = config(shards(tmp_path), dtype="float32", auto_map={"AutoModel": "modeling.Model"})

    assert said(folder) == ""


@pytest.mark.parametrize("total", [31, 0, 10**15])
def test_a_wrong_total_size_is_a_remark(tmp_path: Path, total: int) -> None:
    with open_checkpoint(shards(tmp_path)) as checkpoint:
        places = {name: checkpoint.file(name).name for name in checkpoint.names()}
    index(tmp_path, places, metadata={"total_size": total})

    assert said(tmp_path) == f"the index says total_size {total}; the tensors take 32 bytes"


@pytest.mark.parametrize("total", ["32", None, -1, True, 1e300, [32]])
def test_a_total_size_that_is_no_size_is_not_looked_at(tmp_path: Path, total: object) -> None:
    with open_checkpoint(shards(tmp_path)) as checkpoint:
        places = {name: checkpoint.file(name).name for name in checkpoint.names()}
    index(tmp_path, places, metadata={"total_size": total})

    assert said(tmp_path) == ""


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_that_no_tensor_has_is_a_remark(tmp_path: Path, key: str) -> None:
    folder = config(shards(tmp_path), **{key: "bfloat16"})

    assert said(folder) == "config.json says bfloat16; the tensors are F32"


def test_code_from_another_repository_is_a_remark(tmp_path: Path) -> None:
    auto_map = {"AutoModel": "someone/else--modeling.Model", "AutoTokenizer": ["a.B", None]}
    folder = config(shards(tmp_path), auto_map=auto_map)

    assert "another repository: 'someone/else--modeling.Model'" in said(folder)


@pytest.mark.parametrize("text", ['{"a":' * 10_000 + "1" + "}" * 10_000, "[]", "{", '{"a":NaN}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (shards(tmp_path) / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        said(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "kind", "bits"),
    [
        ("F16", np.uint16, [0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0]),
        ("BF16", np.uint16, [0x7F80, 0xFF80, 0x7FC1, 0x7F7F, 0x8000]),
        ("F32", np.uint32, [0x7F800000, 0xFF800000, 0x7F800001, 0x7F7FFFFF, 0]),
        ("F64", np.uint64, [0x7FF << 52, 0xFFF << 52, (0x7FF << 52) + 1, 1, 0]),
        ("F8_E5M2", np.uint8, [0x7C, 0xFC, 0x7F, 0x7B, 0]),
    ],
)
def test_nan_and_infinity_are_counted(dtype: str, kind: type, bits: list[int]) -> None:
    tensor = from_bits(dtype, np.array(bits, dtype=kind))

    assert count_nonfinite(tensor) == NonFinite(nan=1, infinite=2)


def test_what_has_no_infinity_counts_none() -> None:
    eight = from_bits("F8_E4M3", np.array([0x7F, 0xFF, 0x7E], dtype=np.uint8))
    whole = from_bits("I16", np.array([0x7C00], dtype=np.uint16))

    assert count_nonfinite(eight) == NonFinite(nan=2, infinite=0)
    assert not count_nonfinite(whole)


def test_a_link_into_a_hubs_blobs_is_followed(tmp_path: Path) -> None:
    commit = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    shards(blobs)
    for file in list(blobs.iterdir()):
        (commit / file.name).symlink_to(Path("../../blobs") / file.name)

    with open_checkpoint(commit) as checkpoint:
        assert list(checkpoint.names()) == ["a", "b"]

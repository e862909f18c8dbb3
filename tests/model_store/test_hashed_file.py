"""Bytes that pass through the ring of buffers are hashed before a buffer is used again."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

from model_store.files import sha256_file
from model_store.hashed_file import HashedFile, HashLanes
from model_store.tensor_sources import StoredTensor
from model_store.weight_file import WeightFile


def test_a_slow_hasher_never_sees_a_buffer_that_was_filled_again(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((20 << 20) + 123)
    (tmp_path / "source").write_bytes(data)
    digest = hashlib.sha256()

    def slowly(chunk: memoryview) -> None:
        time.sleep(0.005)
        digest.update(chunk)

    lanes = HashLanes()
    with WeightFile(tmp_path / "source") as source:
        file = HashedFile(tmp_path / "copy", lanes)
        file.write(0, StoredTensor(source, 0, "U8", (len(data),)), slowly)
        entry = file.finish().result()
    lanes.close()

    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
    assert entry.sha256 == digest.hexdigest() == sha256_file(tmp_path / "copy")

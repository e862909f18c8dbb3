"""Whatever bytes are damaged, a reader gives the tensors or an error of ours, and does not hang."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from tests.model_store.hostile import entry, safetensors, state_dict, tensor, torch_zip

CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4)), min_size=1, max_size=4)


def torch_file(folder: Path) -> Path:
    program = state_dict(a=tensor(), b=tensor(offset=1, shape=(1, 2), strides=(9, 2)))
    return torch_zip(folder / "m.bin", program)


def safetensors_file(folder: Path) -> Path:
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry(0, 8, shape=[2]),
        "b": entry(8, 16, shape=[2, 1]),
    }
    return safetensors(folder / "m.safetensors", header)


@pytest.mark.parametrize("make", [torch_file, safetensors_file])
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=CHANGES)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, make: Callable[[Path], Path], changes: list[tuple[int, bytes]]
) -> None:
    path = make(tmp_path)
    content = bytearray(path.read_bytes())
    for place, replacement in changes:
        at = place % len(content)
        content[at : at + 2] = replacement
    path.write_bytes(content)

    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.names():
                checkpoint.read(name).digest()
    except CheckpointError:
        pass

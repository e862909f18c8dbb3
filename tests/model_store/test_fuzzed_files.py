"""Whatever bytes are damaged, a reader gives the tensors or an error of ours, and does not hang."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.checkpoint import open_checkpoint
from model_store.errors import CheckpointError
from model_store.nonfinite import count_nonfinite
from model_store.pickle_records import read_records
from tests.model_store.hostile import (
    FLOATS,
    entry,
    number,
    numbers,
    safetensors,
    state_dict,
    storage,
    tensor,
    text,
    torch_zip,
)

# MODELFERRY_FUZZ=20000 looks further than the default suite has time for
EXAMPLES = int(os.environ.get("MODELFERRY_FUZZ", "200"))
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4)), min_size=1, max_size=4)
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


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


CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def read_or_refuse(path: Path) -> None:
    """Read all of a file; only an error of ours may come of it.

    A megabyte may take a second; beside the largest tensor 64 MB may be taken from the system.
    """
    CLEAR.write_text("5")  # the peak is counted from here
    resident, largest = kilobytes("VmRSS"), 0
    started = time.thread_time()
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.names():
                read = checkpoint.read(name)
                assert read.nbytes == read.data.nbytes <= path.stat().st_size
                largest = max(largest, read.nbytes)
                read.digest()
                count_nonfinite(read)
            checkpoint.check_sums()
    except CheckpointError:
        pass
    assert time.thread_time() - started < 1 + path.stat().st_size / 1e6
    assert kilobytes("VmHWM") - resident < (64_000_000 + largest) / 1000


def kilobytes(kind: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


@pytest.mark.parametrize("make", [torch_file, safetensors_file])
@FUZZ
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

    read_or_refuse(path)


# the opcodes that are understood, whole and with plausible arguments, and some that are not
OPCODES = st.one_of(
    st.sampled_from(
        [b"(", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"s", b"u", b"a"]
        + [b"e", b"N", b"\x88", b"\x89", b"Q", b"\x94", b"\x93", b".", b"0", b"1", b"2", b"\x81"]
        + [b"c" + name for name in (b"torch._utils\n_rebuild_tensor_v2\n", b"os\nsystem\n")]
        + [b"c" + name for name in (b"torch\nFloatStorage\n", b"torch.storage\nUntypedStorage\n")]
        + [b"c" + name for name in (b"torch._utils\n_rebuild_tensor_v3\n", b"torch\nuint16\n")]
        + [b"c" + name for name in (b"torch._utils\n_rebuild_parameter\n", b"")]
        + [b"ccollections\nOrderedDict\n", storage(), tensor(), text("storage"), text("0")]
    ),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.integers(0, 9).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 9).map(lambda n: b"h" + bytes([n])),
    st.integers(-(2**63), 2**63).map(number),
    st.tuples(st.integers(-1, 5), st.integers(-1, 5)).map(numbers),
    st.text(max_size=3).map(text),
    st.binary(max_size=3),
)


@FUZZ
@given(opcodes=st.lists(OPCODES, max_size=30), ended=st.booleans())
def test_any_program_is_data_or_refused(opcodes: list[bytes], ended: bool) -> None:
    program = b"\x80\x02" + b"".join(opcodes) + (b"." if ended else b"")

    with suppress(CheckpointError):
        read_records(program)


@FUZZ
@given(
    storage_bytes=st.integers(0, 70),
    elements=st.integers(-1, 20),
    offset=st.integers(-1, 20),
    sizes=st.lists(st.tuples(st.integers(-1, 2**33), st.integers(-1, 2**33)), max_size=3),
)
def test_no_shape_reaches_beyond_its_storage(
    tmp_path: Path,
    storage_bytes: int,
    elements: int,
    offset: int,
    sizes: list[tuple[int, int]],
) -> None:
    shape, strides = tuple(n for n, _ in sizes), tuple(n for _, n in sizes)
    made = tensor(held=storage(elements=elements), offset=offset, shape=shape, strides=strides)
    path = torch_zip(tmp_path / "m.bin", state_dict(w=made), data=bytes(storage_bytes))

    read_or_refuse(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
SIZES = st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F4", ""]) | JSON,
        "shape": SIZES | JSON,
        "data_offsets": st.tuples(st.integers(-1, 17), st.integers(-1, 17)).map(list) | JSON,
    }
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | JSON))
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    read_or_refuse(safetensors(tmp_path / "m.safetensors", header, FLOATS))


@FUZZ
@given(length=st.integers(0, 2**64 - 1) | st.integers(0, 200), rest=st.binary(max_size=200))
def test_any_bytes_behind_a_length_are_read_or_refused(
    tmp_path: Path, length: int, rest: bytes
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + rest)

    read_or_refuse(path)


@FUZZ
@given(value=JSON | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(), JSON)}))
def test_any_index_is_read_or_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(value), encoding="utf-8")

    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)

"""Steps keep little in memory, whatever the size of the tensors."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.manifest import Manifest, scan, write_manifest

_ROOT = Path(__file__).resolve().parents[2]
_MOST = 128_000_000
_PROGRAM = """
import sys
from importlib import import_module
code = import_module(f"conversion.{sys.argv[1]}").main(sys.argv[2:])
lines = open("/proc/self/status").read().splitlines()
print(code, next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def _source(folder: Path, shape: tuple[int, int]) -> Path:
    """One float32 tensor of zeros that takes no room on the disk."""
    folder.mkdir()
    size = 4 * shape[0] * shape[1]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    header = json.dumps({"a.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + size)
    (folder / "config.json").write_text("{}")
    write_manifest(folder, Manifest(files=scan(folder)))
    return folder


@pytest.mark.parametrize("step", ["to_safetensors", "cast", "rename"])
def test_a_tensor_of_256_mb_passes_through_a_few_megabytes(tmp_path: Path, step: str) -> None:
    source = _source(tmp_path / "s", (8000, 8000))
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nsource = "a.weight"\ntargets = ["b.weight", "c.weight"]\nop = "columns"\n'
    )
    flags = ["--rules", str(rules)] if step == "rename" else []
    argv = [step, str(source), "--into", str(tmp_path / "t"), "--quiet", *flags]

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *argv],
        cwd=_ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip

    code, kilobytes = map(int, done.stdout.splitlines()[-1].split())
    assert code == 0
    assert kilobytes * 1024 < _MOST

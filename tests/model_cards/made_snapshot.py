"""A small quantized snapshot with a record, for card tests."""

from __future__ import annotations

from pathlib import Path

from model_store.manifest import (
    Manifest,
    Source,
    Step,
    TensorDigest,
    read_manifest,
    scan,
    write_manifest,
)
from model_store.records import Measurement, RecordSet, write_record

SOURCE = Source("modelscope", "ferry/Qwen-VL-Tiny-Chat", "v1.0.0", "c" * 40)
KL = Measurement(
    "mean KL", 0.0123, "nats", 24, "pass", threshold="<= 0.05", interval=(0.01, 0.02), primary=True
)


def make_snapshot(folder: Path, *, licence: str | None = None) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "CHANGES.md").write_text("changed\n")
    if licence is not None:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    steps = (
        Step("to_transformers", {}, "modelferry 0.1.0", "a" * 64, SOURCE),
        Step("gptq", {"bits": 4, "group_size": 128}, "modelferry 0.1.0", "b" * 64),
    )
    tensors = {
        "a.qweight": TensorDigest("I32", (16, 8), "d" * 64),
        "b.weight": TensorDigest("BF16", (4, 4), "e" * 64),
    }
    write_manifest(folder, Manifest(scan(folder), lineage=steps, tensors=tensors))
    record = RecordSet(
        name="parity-quantized",
        claim="quantized",
        reference="f" * 64,
        candidate=read_manifest(folder).content_digest,
        command=("python", "-m", "verification.compare", "native", "int4"),
        seed=0,
        measurements=(KL, Measurement("boxes", None, "", 0, "skipped")),
    )
    write_record(folder, record)
    return folder

"""CardFacts: everything a card may say, taken from a snapshot's manifest and records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_store.manifest import FileEntry, Manifest, Source, Step, read_manifest
from model_store.records import RecordSet, read_records

_QUANTIZED = ".qweight"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What is known about one snapshot; a card adds wording, never a number."""

    content_digest: str
    base: Source | None  # the hub repository that the lineage starts from
    lineage: tuple[Step, ...]
    files: tuple[FileEntry, ...]
    dtypes: Mapping[str, int]  # dtype -> elements, packed integers as stored
    quantized_linears: int
    records: tuple[RecordSet, ...]

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """Options of the quantization step, if there was one."""
        return next((s.options for s in self.lineage if s.step == "gptq"), None)

    @property
    def parity(self) -> tuple[RecordSet, ...]:
        """The records that compare this snapshot with its reference; the card prints them whole."""
        return tuple(record for record in self.records if record.name.startswith("parity-"))

    @property
    def weight_bytes(self) -> int:
        endings = (".safetensors", ".bin", ".pt", ".pth")
        return sum(entry.size for entry in self.files if entry.path.endswith(endings))

    @property
    def relation(self) -> str | None:
        """Hugging Face's base_model_relation; None for a checkpoint with no parent."""
        if self.quantization is not None:
            return "quantized"
        return "finetune" if any(s.step == "finetune" for s in self.lineage) else None


def read_facts(snapshot: Path) -> CardFacts:
    """Collect a snapshot's facts; records about another content digest are left out."""
    manifest = read_manifest(snapshot)
    tensors = manifest.tensors or {}
    dtypes: dict[str, int] = {}
    for digest in tensors.values():
        dtypes[digest.dtype] = dtypes.get(digest.dtype, 0) + math.prod(digest.shape)
    return CardFacts(
        content_digest=manifest.content_digest,
        base=_base(manifest),
        lineage=manifest.lineage,
        files=manifest.files,
        dtypes=dtypes,
        quantized_linears=sum(name.endswith(_QUANTIZED) for name in tensors),
        records=tuple(read_records(snapshot, candidate=manifest.content_digest)),
    )


def _base(manifest: Manifest) -> Source | None:
    # the first parent that came from a hub; later parents were made here
    return next((step.parent_source for step in manifest.lineage if step.parent_source), None)

"""A full-precision Qwen-VL snapshot of either layout, read in native terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.canonical import parse_json
from model_store.change_notice import is_legal
from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.errors import NotASnapshotError
from model_store.manifest import Manifest, is_content, read_manifest, verify_snapshot
from model_store.paths import inside
from model_store.progress import Progress
from model_store.tensors import RawTensor
from model_store.weight_rules import TensorInfo, moved, planned
from quantization.errors import AlreadyQuantizedError, UnsupportedModelError
from qwen_vl.loading import FolderConfig, find_rank_file
from qwen_vl.ranks import read_ranks
from qwen_vl.side_files import TOKENIZER_CONFIG, native_side_files
from qwen_vl.tokenizer_json import TOKENIZER_JSON, tokenizer_json
from qwen_vl.weight_map import native_plan

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth"})


@dataclass(frozen=True, slots=True)
class SourceSnapshot:
    """The snapshot to quantize; `config` is its native config.json, without quantization."""

    folder: Path
    manifest: Manifest
    config: Mapping[str, Any]
    original_layout: bool

    @property
    def image_size(self) -> int:
        return int(self.config["vision_config"]["image_size"])

    def carried(self) -> list[str]:
        """Files that go along byte by byte: tokenizer, generation, processor, legal texts."""
        return [
            entry.path
            for entry in self.manifest.files
            if (is_content(entry.path) and not _is_remade(entry.path)) or is_legal(entry.path)
        ]

    def side_files(self) -> dict[str, dict[str, Any]]:
        """Files that the native layout has beside config.json and the original one lacks."""
        if not self.original_layout:
            return {}
        told: Any = None
        if self.manifest.entry(TOKENIZER_CONFIG) is not None:
            data = inside(self.folder, TOKENIZER_CONFIG).read_bytes()
            told = parse_json(data, name=TOKENIZER_CONFIG)
        return native_side_files(told if isinstance(told, dict) else None, self.config)

    def tokenizer_json(self) -> bytes | None:
        """The fast tokenizer's file, where the source has none and the native layout has one."""
        if not self.original_layout or self.manifest.entry(TOKENIZER_JSON) is not None:
            return None
        ranks = find_rank_file(self.folder)
        return None if ranks is None else tokenizer_json(read_ranks(ranks))

    @contextmanager
    def tensors(self) -> Iterator[NativeTensors]:
        """Open the weights under their native names."""
        with open_checkpoint(self.folder) as checkpoint:
            heads = int(self.config["vision_config"]["num_attention_heads"])
            yield NativeTensors(checkpoint, heads if self.original_layout else None)


class NativeTensors:
    """A checkpoint's tensors by native name, bytes untouched."""

    def __init__(self, checkpoint: Checkpoint, vision_heads: int | None) -> None:
        """Plan the way from `checkpoint`; `vision_heads` is None when it is native already."""
        self._read = checkpoint.read
        self.infos: Mapping[str, TensorInfo] = {n: checkpoint.info(n) for n in checkpoint.names()}
        self._plan = None
        if vision_heads is not None:
            self._plan = native_plan(self.infos, vision_heads=vision_heads)
            self.infos = planned(self._plan)

    def except_for(self, names: set[str]) -> Iterator[tuple[str, RawTensor]]:
        """Yield every tensor whose name is not in `names`, one after the other."""
        everything: Iterator[tuple[str, RawTensor]]
        if self._plan is None:
            everything = ((name, self._read(name)) for name in self.infos if name not in names)
        else:
            kept = [m for m in self._plan if not names.issuperset(t.name for t in m.targets)]
            everything = moved(kept, self._read)
        return (pair for pair in everything if pair[0] not in names)


def open_source(
    folder: Path, *, verify: bool = True, progress: Progress | None = None
) -> SourceSnapshot:
    """Check that a folder is a full-precision Qwen-VL snapshot.

    Raises:
        NotASnapshotError: no manifest, or weights that it does not list.
        DigestMismatchError: a file's bytes are not the manifest's.
        ModelError: another architecture, or a config that cannot be used.
        AlreadyQuantizedError: it holds packed integers.
        UnsupportedModelError: without a tokenizer there is nothing to calibrate with.
    """
    manifest = verify_snapshot(folder, progress=progress) if verify else read_manifest(folder)
    described = FolderConfig.read(folder)
    with open_checkpoint(folder) as checkpoint:
        for file in checkpoint.files:
            if manifest.entry(file.relative_to(folder).as_posix()) is None:
                raise NotASnapshotError(f"the manifest of {folder} does not list {file.name}")
        packed = next((name for name in checkpoint.names() if name.endswith(".qweight")), None)
    if described.quantization is not None or packed is not None:
        raise AlreadyQuantizedError(f"{folder} is quantized already")
    if not any(entry.path.endswith(".tiktoken") for entry in manifest.files):
        raise UnsupportedModelError(
            f"{folder} has no rank file, and so no tokenizer", hint="Fetch qwen.tiktoken into it."
        )
    return SourceSnapshot(folder, manifest, described.native, described.original_layout)


def _is_remade(path: str) -> bool:
    name = PurePosixPath(path)
    return (
        name.suffix in _WEIGHTS
        or name.name.endswith(".index.json")
        or path in ("config.json", "quantize_config.json")
    )

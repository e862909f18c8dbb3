"""Full-precision snapshots to quantize: what every kind can do, and Qwen-VL of either layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from torch import nn

from model_store.canonical import parse_json
from model_store.change_notice import is_legal
from model_store.checkpoint import Checkpoint, open_checkpoint
from model_store.errors import NotASnapshotError, StoreError
from model_store.manifest import Manifest, is_content, read_manifest, verify_snapshot
from model_store.paths import inside
from model_store.progress import Progress
from model_store.tensors import RawTensor
from model_store.weight_rules import TensorInfo, moved, planned
from quantization.calibration import CalibrationSet, calibration_set
from quantization.errors import AlreadyQuantizedError, UnsupportedModelError
from quantization.options import GptqConfig
from qwen_vl.configuration import QwenVLConfig
from qwen_vl.loading import FolderConfig, find_rank_file, load_tokenizer
from qwen_vl.modeling import QwenVLForConditionalGeneration
from qwen_vl.ranks import read_ranks
from qwen_vl.side_files import TOKENIZER_CONFIG, native_side_files
from qwen_vl.tokenizer_json import TOKENIZER_JSON, tokenizer_json
from qwen_vl.weight_map import native_plan


class Source(Protocol):
    """A snapshot to quantize; tensors go by the names that the model's modules have."""

    @property
    def folder(self) -> Path: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json in native terms, without quantization."""

    @property
    def dtype(self) -> str:
        """What the checkpoint computes in."""

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Make the model; called where parameters take no memory."""

    def carried(self) -> list[str]:
        """Files that go along byte by byte."""

    def made_files(self) -> dict[str, Any]:
        """Files that the result has and the source lacks: name -> JSON value or bytes."""

    def tensors(self) -> AbstractContextManager[NativeTensors]:
        """Open the weights."""

    def calibration(self, config: GptqConfig) -> CalibrationSet:
        """Make the calibration samples."""


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
            if (is_content(entry.path) and not is_remade(entry.path)) or is_legal(entry.path)
        ]

    @property
    def dtype(self) -> str:
        return str(self.config.get("dtype") or "float32")

    def build(self, dtype: torch.dtype) -> nn.Module:
        config = QwenVLConfig(**self.config)
        config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
        return QwenVLForConditionalGeneration(config)

    def calibration(self, config: GptqConfig) -> CalibrationSet:
        return calibration_set(config, load_tokenizer(self.folder), image_size=self.image_size)

    def made_files(self) -> dict[str, Any]:
        """Files that the native layout has beside config.json and the original one lacks."""
        made: dict[str, Any] = self._side_files()
        if (data := self._tokenizer_json()) is not None:
            made[TOKENIZER_JSON] = data
        return made

    def _side_files(self) -> dict[str, dict[str, Any]]:
        if not self.original_layout:
            return {}
        told: Any = None
        if self.manifest.entry(TOKENIZER_CONFIG) is not None:
            data = inside(self.folder, TOKENIZER_CONFIG).read_bytes()
            told = parse_json(data, name=TOKENIZER_CONFIG)
        return native_side_files(told if isinstance(told, dict) else None, self.config)

    def _tokenizer_json(self) -> bytes | None:
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

    def only(self, names: Collection[str]) -> Iterator[tuple[str, RawTensor]]:
        """Yield the tensors of these names."""
        if self._plan is None:
            return ((name, self._read(name)) for name in self.infos if name in names)
        wanted = [m for m in self._plan if any(t.name in names for t in m.targets)]
        return (pair for pair in moved(wanted, self._read) if pair[0] in names)


def open_source(folder: Path, *, verify: bool = True, progress: Progress | None = None) -> Source:
    """Open a Qwen-VL snapshot of either layout, or one of any decoder that transformers has.

    Raises:
        NotASnapshotError, DigestMismatchError, ModelError, QuantizationError: see `open_qwen_vl`
            and `quantization.stock.open_stock`.
    """
    manifest = verify_snapshot(folder, progress=progress) if verify else read_manifest(folder)
    kind = read_config(folder).get("model_type")
    if kind in ("qwen", "qwen_vl"):
        return open_qwen_vl(folder, manifest)
    from quantization.stock import open_stock

    return open_stock(folder, manifest)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        UnsupportedModelError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UnsupportedModelError(f"{folder} has no config.json")
    try:
        value = parse_json(path.read_bytes(), name="config.json")
    except StoreError as error:
        raise UnsupportedModelError(str(error)) from error
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object")
    return value


def check_weights(folder: Path, manifest: Manifest, quantized: object) -> None:
    """Refuse weights that the manifest does not list, and weights that are integers already.

    Raises:
        NotASnapshotError, AlreadyQuantizedError: saying so.
    """
    with open_checkpoint(folder) as checkpoint:
        for file in checkpoint.files:
            if manifest.entry(file.relative_to(folder).as_posix()) is None:
                raise NotASnapshotError(f"the manifest of {folder} does not list {file.name}")
        packed = next((name for name in checkpoint.names() if name.endswith(".qweight")), None)
    if quantized or packed is not None:
        raise AlreadyQuantizedError(f"{folder} is quantized already")


def open_qwen_vl(folder: Path, manifest: Manifest) -> SourceSnapshot:
    """Check that a folder is a full-precision Qwen-VL snapshot.

    Raises:
        NotASnapshotError: weights that the manifest does not list.
        ModelError: another architecture, or a config that cannot be used.
        AlreadyQuantizedError: it holds packed integers.
        UnsupportedModelError: without a tokenizer there is nothing to calibrate with.
    """
    described = FolderConfig.read(folder)
    described.build()
    check_weights(folder, manifest, described.quantization)
    if not any(entry.path.endswith(".tiktoken") for entry in manifest.files):
        raise UnsupportedModelError(
            f"{folder} has no rank file, and so no tokenizer", hint="Fetch qwen.tiktoken into it."
        )
    return SourceSnapshot(folder, manifest, described.native, described.original_layout)


def is_remade(path: str) -> bool:
    name = PurePosixPath(path)
    return (
        name.suffix in _WEIGHTS
        or name.name.endswith(".index.json")
        or path in ("config.json", "quantize_config.json")
    )

"""Layers from a snapshot, one in memory at a time; what is done is kept, so a rerun goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store.gptq_format import Version, pack
from model_store.tensors import RawTensor, from_bits
from quantization.batches import Batch
from quantization.options import GptqConfig
from quantization.sequential import LayerError
from quantization.skeleton import empty
from quantization.solver import QuantizedLinear
from quantization.writing import PARTS, weight_digest

FOLDER = "quantized.partial"
_KINDS = {"qweight": "I32", "qzeros": "I32", "scales": "F16", "g_idx": "I32"}


@dataclass
class Journal:
    """A folder with one file a finished layer, and the hidden states behind the last of them.

    A layer counts as finished when its file has its name, which it gets after everything else.
    """

    folder: Path
    config: GptqConfig
    model: nn.Module
    fill_layer: Callable[[str], None]  # puts a layer's weights into the model, by prefix
    digests: dict[str, str] = field(default_factory=dict)  # linear -> digest of its values
    places: dict[str, Path] = field(default_factory=dict)  # linear -> file that holds it
    resumed: int = 0  # layers that an earlier run had finished
    _held: dict[str, Tensor] = field(default_factory=dict)
    _mine: dict[str, str] = field(default_factory=dict)
    _number: int = 0

    def sink(self, name: str, result: QuantizedLinear) -> None:
        """Pack a linear as soon as it is solved: see `Sink`."""
        own = self.config.for_module(name)
        version: Version = "gptq_v2" if own.format == "gptq_v2" else "gptq"
        codes, scales, zeros, g_idx = (part.cpu().numpy() for part in result)
        packed = pack(codes, zeros, scales, g_idx, bits=own.bits, version=version)
        for part in PARTS:
            self._held[f"{name}.{part}"] = torch.from_numpy(getattr(packed, part))
        self._mine[name] = weight_digest(result.weight())

    def load(self, prefix: str, layer: nn.Module) -> None:
        self.fill_layer(prefix)

    def done(self, prefix: str, batches: list[Batch]) -> list[LayerError] | None:
        """Take over a layer that an earlier run finished: see `LayerStore`."""
        self._number += 1
        layer = self._layer(self._number)
        if not layer.is_file():
            return None
        errors = self._remember(layer)
        self.resumed += 1
        if not self._layer(self._number + 1).is_file():
            self._read_states(batches)
        return errors

    def finished(self, prefix: str, batches: list[Batch], errors: list[LayerError]) -> None:
        """Keep a layer and the states behind it: see `LayerStore`."""
        self.folder.mkdir(exist_ok=True)
        self._save(self._states(self._number), _states(batches), {})
        self._write(self._layer(self._number), errors)
        self._states(self._number - 1).unlink(missing_ok=True)
        empty(self.model.get_submodule(prefix))

    def finished_head(self, errors: list[LayerError]) -> None:
        """Keep what runs behind the layers; a rerun does it again, it is one linear."""
        self._write(self.folder / "head.safetensors", errors)

    def tensor(self, name: str) -> RawTensor:
        """A packed tensor, by full name."""
        linear, _, part = name.rpartition(".")
        with safe_open(self.places[linear], framework="numpy") as held:
            return from_bits(_KINDS[part], np.ascontiguousarray(held.get_tensor(name)))

    def remove(self) -> None:
        """Forget everything: the snapshot is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _layer(self, number: int) -> Path:
        return self.folder / f"layer-{number:05d}.safetensors"

    def _states(self, number: int) -> Path:
        return self.folder / f"states-{number:05d}.safetensors"

    def _write(self, path: Path, errors: list[LayerError]) -> None:
        told = {
            "errors": json.dumps([asdict(one) for one in errors]),
            "digests": json.dumps(self._mine),
        }
        self._save(path, self._held, told)
        self._held, self._mine = {}, {}
        self._remember(path)

    def _save(self, path: Path, tensors: dict[str, Tensor], told: dict[str, str]) -> None:
        beside = path.with_suffix(".new")
        save_file(tensors, beside, metadata=told)
        beside.replace(path)

    def _remember(self, layer: Path) -> list[LayerError]:
        with safe_open(layer, framework="numpy") as held:
            told = held.metadata()
        digests: dict[str, str] = json.loads(told["digests"])
        self.digests |= digests
        self.places |= dict.fromkeys(digests, layer)
        return [LayerError(**one) for one in json.loads(told["errors"])]

    def _read_states(self, batches: list[Batch]) -> None:
        with safe_open(self._states(self._number), framework="pt") as held:
            for number, batch in enumerate(batches):
                batch.hidden = held.get_tensor(f"hidden.{number}").to(batch.hidden.device)
                if batch.original is not None:
                    batch.original = held.get_tensor(f"original.{number}").to(batch.hidden.device)


def _states(batches: list[Batch]) -> dict[str, Tensor]:
    found = {f"hidden.{n}": one.hidden.cpu().contiguous() for n, one in enumerate(batches)}
    for number, one in enumerate(batches):
        if one.original is not None:
            # a copy: at first both are one tensor, and a file holds each only once
            found[f"original.{number}"] = one.original.cpu().clone()
    return found

"""Put the new weight files together: packed linears from the journal, the rest from the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from model_store.shard_writer import WrittenShards
from model_store.tensors import RawTensor
from model_store.weight_rules import TensorSpec, moved, planned
from quantization.layer_store import Journal
from quantization.options import GptqConfig
from quantization.outcome import notice
from quantization.source import NativeTensors, Source
from quantization.writing import PARTS, open_writer, plan_tensors
from qwen_vl.weight_map import original_plan


@dataclass(frozen=True, slots=True)
class Parts:
    """What the result is made of, by the names of the modules."""

    source: NativeTensors
    journal: Journal
    layers: Mapping[str, nn.Linear]  # that were quantized

    def read(self, name: str) -> RawTensor:
        """One tensor; a bias that neither side has is zeros."""
        linear, _, part = name.rpartition(".")
        if linear in self.layers and part in PARTS:
            return self.journal.tensor(name)
        if name in self.source.infos:
            return next(self.source.only({name}))[1]
        rows = self.layers[linear].out_features
        return RawTensor("F16", (rows,), memoryview(bytes(2 * rows)))


def assemble(building: Path, parts: Parts, source: Source, config: GptqConfig) -> WrittenShards:
    """Write every tensor of the result, one in memory at a time.

    Args:
        building: the new folder.
        parts: what there is.
        source: what was quantized.
        config: widths, groups and layout.
    """
    original = config.layout == "original"
    plan = plan_tensors(parts.source.infos, parts.layers, config, zero_biases=original)
    if not original:
        with open_writer(building, plan, notice(config)) as writer:
            for name, tensor in _in_turn(parts, [name for name, _, _ in plan]):
                writer.add(name, tensor)
            return writer.finish()
    infos = {name: TensorSpec(name, dtype, shape) for name, dtype, shape in plan}
    heads = int(source.config["vision_config"]["num_attention_heads"])
    moves = original_plan(infos, vision_heads=heads)
    named = [(spec.name, spec.dtype, tuple(spec.shape)) for spec in planned(moves).values()]
    with open_writer(building, named, notice(config)) as writer:
        for name, tensor in moved(moves, parts.read):
            writer.add(name, tensor)
        return writer.finish()


def _in_turn(parts: Parts, names: list[str]) -> Iterator[tuple[str, RawTensor]]:
    """Packed tensors first, then the others, which may share a source tensor, in its order."""
    others = {name for name in names if name in parts.source.infos}
    for name in names:
        if name not in others:
            yield name, parts.read(name)
    yield from parts.source.only(others)

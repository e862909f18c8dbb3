"""The step: a full-precision snapshot in, a GPTQ snapshot out, proved by reading it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.canonical import canonical_digest
from model_store.checkpoint import open_checkpoint
from model_store.files import write_text
from model_store.manifest import Manifest, Step, read_manifest, scan, tool_version, write_manifest
from model_store.options import provenance
from model_store.progress import NoProgress, Progress
from model_store.records import write_record
from model_store.shard_writer import WrittenShards
from model_store.snapshot_folder import check_target, finished_result, is_resumable, new_snapshot
from quantization.assembly import Parts, assemble
from quantization.batches import Batch, make_batches
from quantization.blocks import decoder_layers, linears
from quantization.calibration import CalibrationSet
from quantization.configs import check_layout, result_files
from quantization.error_plot import PLOT, error_plot
from quantization.layer_store import FOLDER, Journal
from quantization.lm_head import quantize_head, wanted_outside
from quantization.module_rules import chosen
from quantization.options import GptqConfig
from quantization.outcome import Outcome, notice, record
from quantization.proof import (
    TOLERANCE,
    Probe,
    check_linears,
    check_runs,
    check_tensors,
    logits_behind,
)
from quantization.sequential import LayerError, quantize_layers, shared
from quantization.skeleton import build_empty, empty, fill, fill_outside, names_below
from quantization.source import NativeTensors, Source, open_source
from quantization.writing import check_shapes, write_side_files

_DTYPES = {one: getattr(torch, one) for one in ("float32", "bfloat16", "float16")}


@dataclass(frozen=True, slots=True)
class Result:
    """The step's snapshot; `fresh` is False when it was there already."""

    folder: Path
    manifest: Manifest
    fresh: bool

    def json(self) -> dict[str, Any]:
        return {
            "path": str(self.folder),
            "content_digest": self.manifest.content_digest,
            "fresh": self.fresh,
        }


def quantize_snapshot(
    folder: Path, target: Path, config: GptqConfig, *, progress: Progress | None = None
) -> Result:
    """Quantize a decoder's snapshot; a killed run is gone on with at the layer it had reached.

    Qwen-VL is read in either layout and written in the one that `config.layout` names; any other
    decoder keeps its own.

    Raises:
        QuantizationError: the source, the calibration set or a layer; see quantization.errors.
        NotASnapshotError, DigestMismatchError: the source is not what its manifest says.
        TargetExistsError: `target` holds something else.
        UsageError: patterns that name nothing.
    """
    watcher = progress or NoProgress()
    source = open_source(folder, verify=config.verify, progress=watcher)
    calibration = source.calibration(config)
    step = _step(source, config, calibration)
    done = finished_result(target, step)
    if done is not None:
        return Result(target, done, fresh=False)
    check_target(target, replace=config.replace)
    check_layout(source, config)
    dtype = _DTYPES[source.dtype if config.dtype == "auto" else config.dtype]
    model = build_empty(lambda: source.build(dtype))
    layers = _to_quantize(model, config)  # bad requests end here, before a folder is made
    key = canonical_digest({"step": step.json(), "threads": torch.get_num_threads()})
    if is_resumable(target, key):
        watcher.log(f"going on with what an interrupted run left beside {target.name}")
    with new_snapshot(target, replace=config.replace, resume_key=key) as building:
        work = _Work(source, config, calibration, step, model, layers, dtype, watcher)
        with source.tensors() as tensors:
            work.write(building, tensors)
    return Result(target, read_manifest(target), fresh=True)


def _to_quantize(model: nn.Module, config: GptqConfig) -> dict[str, nn.Linear]:
    inside = linears(decoder_layers(model))
    found = {name: inside[name] for name in chosen(inside, config.exclude)}
    found |= wanted_outside(model, inside, config)
    check_shapes(found, config)
    return found


def _step(source: Source, config: GptqConfig, calibration: CalibrationSet) -> Step:
    return Step(
        step=config.method,
        options=provenance(config),
        tool=tool_version(),
        parent=source.manifest.content_digest,
        parent_source=source.manifest.source,
        facts={"calibration": calibration.facts()},
    )


@dataclass
class _Work:
    """One run, from the opened source to the proved snapshot."""

    source: Source
    config: GptqConfig
    calibration: CalibrationSet
    step: Step
    model: nn.Module  # without weights
    layers: Mapping[str, nn.Linear]  # to be quantized
    dtype: torch.dtype
    progress: Progress

    def write(self, building: Path, tensors: NativeTensors) -> None:
        """Fill the new snapshot's folder; the manifest and the record come last."""
        config, source = self.config, self.source
        layers = decoder_layers(self.model)
        fill_outside(self.model, layers, tensors, dtype=self.dtype, device=config.device)
        batches, row = self._batches()
        start = _row(batches[row[0]], row[1])
        journal = Journal(building / FOLDER, config, self.model, self._filler(tensors))
        errors = quantize_layers(
            self.model, batches, config, journal.sink, journal, progress=self.progress
        )
        errors += self._head(batches, journal)
        batch = batches[row[0]]
        expected = logits_behind(self.model, _row(batch, row[1]).hidden)
        probe = Probe(start, expected)
        files = result_files(source, self.model, list(self.layers), config, self.step.tool)
        empty(self.model)
        batches.clear()
        shards = assemble(building, Parts(tensors, journal, self.layers), source, config)
        write_side_files(building, source, files, self.step, notice(config), layout=config.layout)
        kernels, difference = self._prove(building, shards, journal, probe)
        journal.remove()
        manifest = Manifest(
            files=scan(building, known=shards.files),
            lineage=(*source.manifest.lineage, self.step),
            tensors=shards.tensors,
        )
        write_manifest(building, manifest)
        outcome = Outcome(errors, difference, TOLERANCE[self.dtype], len(expected), kernels)
        parent = source.manifest.content_digest
        write_record(building, record(config, parent, manifest.content_digest, outcome))
        write_text(building / PLOT, error_plot(errors))

    def _filler(self, tensors: NativeTensors) -> Any:
        def fill_layer(prefix: str) -> None:
            names = names_below(tensors.infos, [prefix])
            fill(self.model, tensors.only(names), dtype=self.dtype, device=self.config.device)

        return fill_layer

    def _batches(self) -> tuple[list[Batch], tuple[int, int]]:
        """The batches, and batch and row of the last check's sample: one with an image, if any."""
        samples = shared(self.calibration.inputs, self.config.share or 1.0)
        with torch.no_grad():
            batches = make_batches(
                self.model, decoder_layers(self.model), samples, twin=self.config.asymmetric
            )
        number = next((n for n, one in enumerate(samples) if one.pixel_values is not None), 0)
        for place, batch in enumerate(batches):
            if number < len(batch.hidden):
                return batches, (place, number)
            number -= len(batch.hidden)
        raise AssertionError("every sample is in a batch")

    def _head(self, batches: list[Batch], journal: Journal) -> list[LayerError]:
        inside = linears(decoder_layers(self.model))
        outside = {name: one for name, one in self.layers.items() if name not in inside}
        if not outside:
            return []
        return quantize_head(self.model, outside, batches, self.config, journal)

    def _prove(
        self, building: Path, shards: WrittenShards, journal: Journal, probe: Probe
    ) -> tuple[dict[str, float], float]:
        with open_checkpoint(building) as checkpoint:
            check_tensors(checkpoint, shards.tensors)
            written = NativeTensors(checkpoint, _heads(self.source, self.config))
            kernels = check_linears(written, journal.digests, self.config)
            difference = check_runs(written, self.source, probe, self.config, self.dtype)
        return kernels, difference


def _heads(source: Source, config: GptqConfig) -> int | None:
    """How many heads the vision tower has, where the result has the original layout."""
    if config.layout == "native":
        return None
    return int(source.config["vision_config"]["num_attention_heads"])


def _row(batch: Batch, row: int) -> Batch:
    """One sample of a batch; its padding comes along, no real token sees it."""
    return Batch(batch.hidden[row : row + 1].clone(), None, batch.calls)

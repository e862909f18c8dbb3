"""The step: a full-precision snapshot in, a GPTQ snapshot out, proved by reading it back."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_store.manifest import Manifest, Step, read_manifest, scan, tool_version, write_manifest
from model_store.options import provenance
from model_store.progress import NoProgress, Progress
from model_store.records import Measurement, RecordSet, hardware, versions, write_record
from model_store.shard_writer import WrittenShards
from model_store.snapshot_folder import check_target, finished_result, new_snapshot
from quantization.calibration import CalibrationSet, calibration_set
from quantization.options import GptqConfig
from quantization.proof import TOLERANCE, check_files, check_loads, logits
from quantization.sequential import (
    CalibrationInput,
    LayerError,
    decoder_layers,
    linears,
    quantize_model,
)
from quantization.solver import QuantizedLinear
from quantization.source import SourceSnapshot, open_source
from quantization.writing import (
    check_shapes,
    open_writer,
    plan_tensors,
    quantization_config,
    weight_digest,
    write_linear,
    write_side_files,
)
from qwen_vl.loading import load_model, load_tokenizer

RECORD = "quantization"


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
    """Quantize the decoder of a Qwen-VL snapshot of either layout; writes the native layout.

    Raises:
        QuantizationError: the source, the calibration set or a layer; see quantization.errors.
        NotASnapshotError, DigestMismatchError: the source is not what its manifest says.
        TargetExistsError: `target` holds something else.
    """
    watcher = progress or NoProgress()
    source = open_source(folder, verify=config.verify, progress=watcher)
    tokenizer = load_tokenizer(folder)
    calibration = calibration_set(config, tokenizer, image_size=source.image_size)
    step = _step(source, config, calibration)
    done = finished_result(target, step)
    if done is not None:
        return Result(target, done, fresh=False)
    check_target(target, replace=config.replace)
    with new_snapshot(target, replace=config.replace) as building:
        _Work(source, config, calibration, step, watcher).write(building)
    return Result(target, read_manifest(target), fresh=True)


def _step(source: SourceSnapshot, config: GptqConfig, calibration: CalibrationSet) -> Step:
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
    """One run, from the loaded source to the proved snapshot."""

    source: SourceSnapshot
    config: GptqConfig
    calibration: CalibrationSet
    step: Step
    progress: Progress
    digests: dict[str, str] = field(default_factory=dict)  # linear -> digest of its values

    def write(self, building: Path) -> None:
        """Fill the new snapshot's folder; the manifest and the record come last."""
        config, source = self.config, self.source
        dtype = None if config.dtype == "auto" else config.dtype
        model = load_model(source.folder, dtype=dtype, device=config.device)
        layers = linears(decoder_layers(model))
        check_shapes(layers, config)
        shards, errors = self._write_weights(building, model, layers)
        quantized = quantization_config(config, model, list(layers), self.step.tool)
        write_side_files(building, source, quantized, self.step, _notice(config))
        check_files(building, self.digests, shards.tensors, bits=config.bits)
        expected, computed = logits(model, self._probe()), model.dtype
        del model, layers  # the written one takes its place in memory
        difference = check_loads(
            building, self._probe(), expected, dtype=computed, device=config.device
        )
        manifest = Manifest(
            files=scan(building, known=shards.files),
            lineage=(*source.manifest.lineage, self.step),
            tensors=shards.tensors,
        )
        write_manifest(building, manifest)
        limit = TOLERANCE[computed]
        write_record(building, self._record(manifest, errors, difference, limit))

    def _write_weights(
        self, building: Path, model: nn.Module, layers: Mapping[str, nn.Linear]
    ) -> tuple[WrittenShards, list[LayerError]]:
        """Quantize in place, writing each linear as it is done and then what stays as it was."""
        with (
            self.source.tensors() as tensors,
            open_writer(
                building, plan_tensors(tensors.infos, layers, self.config), _notice(self.config)
            ) as writer,
        ):

            def sink(name: str, result: QuantizedLinear) -> None:
                self.digests[name] = weight_digest(result.weight())
                write_linear(writer, name, result, bits=self.config.bits)

            inputs = self.calibration.inputs
            errors = quantize_model(model, inputs, self.config, sink, progress=self.progress)
            with self.progress.task("write untouched tensors", unit="tensors") as task:
                for name, tensor in tensors.except_for({f"{name}.weight" for name in layers}):
                    writer.add(name, tensor)
                    task.advance()
            return writer.finish(), errors

    def _probe(self) -> CalibrationInput:
        """The sample for the last check: the first one with an image, if there is one."""
        inputs = self.calibration.inputs
        return next((one for one in inputs if one.pixel_values is not None), inputs[0])

    def _record(
        self, manifest: Manifest, errors: Sequence[LayerError], difference: float, limit: float
    ) -> RecordSet:
        reloaded = Measurement(
            name="reloaded model: relative difference of logits from memory",
            value=_short(difference),
            unit="relative norm",
            n=len(self._probe().input_ids),
            verdict="pass",
            threshold=f"<= {limit:g}",
        )
        return RecordSet(
            name=RECORD,
            claim="Each linear's output error on the calibration set, against plain rounding.",
            reference=self.source.manifest.content_digest,
            candidate=manifest.content_digest,
            command=_command(self.config),
            seed=self.config.seed,
            hardware=hardware(),
            versions=versions(("modelferry", "torch", "transformers", "numpy", "pillow")),
            profile={"threads": torch.get_num_threads(), "system": platform.system()},
            measurements=[reloaded, *(_measurement(one, self.config) for one in errors)],
        )


def _measurement(one: LayerError, config: GptqConfig) -> Measurement:
    worse = config.method == "gptq" and one.error > one.rounding_error
    damping = f"; damping {one.damping:g}" if config.method == "gptq" else ""
    return Measurement(
        name=f"{one.name}: relative output error",
        value=_short(one.error),
        unit="relative mean square",
        n=one.rows,
        verdict="warn" if worse else "pass",
        threshold=f"<= {_short(one.rounding_error):g}",
        note=f"the threshold is rounding to nearest on the same inputs{damping}",
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _notice(config: GptqConfig) -> str:
    how = "GPTQ" if config.method == "gptq" else "rounding to nearest"
    return (
        f"Changed by modelferry: the decoder's linear layers were quantized to {config.bits} bits "
        f"by {how}, group size {config.group_size}; every other tensor is unchanged."
    )


def _command(config: GptqConfig) -> list[str]:
    flags = [(f"--{key.replace('_', '-')}", value) for key, value in provenance(config).items()]
    told = [part for flag, value in flags for part in (flag, str(value))]
    return ["python", "-m", "quantization.gptq", *told]

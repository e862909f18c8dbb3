"""The steps that keep every value: snapshot folder and options in, snapshot folder out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion.bundle import BUNDLE
from conversion.errors import NotQwenVLError, WrongLayoutError
from conversion.layouts import (
    Layout,
    check_complete,
    layout_of,
    read_json_file,
    vision_heads,
)
from conversion.opened import OpenedSnapshot
from conversion.options import (
    ReshardOptions,
    ToOriginalOptions,
    ToSafetensorsOptions,
    ToTransformersOptions,
    parse_size,
)
from conversion.qwen_vl_files import SideFiles, native_files, original_files, with_bundle
from conversion.rewriting import (
    Format,
    Result,
    Rewrite,
    TensorMove,
    header_metadata,
)
from conversion.running import run_draft
from conversion.tied import tied_names, tied_sentences
from model_store.manifest import Step, tool_version
from model_store.options import provenance
from model_store.progress import Progress
from model_store.weight_rules import Move, Op, TensorSpec, planned
from qwen_vl.config_map import to_original_config
from qwen_vl.weight_map import WEIGHT_MAP, native_plan, original_plan

TO_NATIVE_NOTICE = (
    "Changed by modelferry: tensors renamed, split and reordered from the layout of 2023 to the "
    "native one; every value is unchanged."
)
TO_ORIGINAL_NOTICE = (
    "Changed by modelferry: tensors renamed, joined and reordered from the native layout to the "
    "one of 2023; every value is unchanged."
)
TO_SAFETENSORS_NOTICE = (
    "Changed by modelferry: the same tensors under the same names, in safetensors files; "
    "every value is unchanged."
)

RESHARD_NOTICE = (
    "Changed by modelferry: the same tensors under the same names, in files of another size or "
    "format; every value is unchanged."
)


def to_transformers(
    folder: Path,
    target: Path,
    options: ToTransformersOptions,
    *,
    progress: Progress | None = None,
) -> Result:
    """Write an original snapshot in the native layout.

    Raises:
        NotQwenVLError: another architecture.
        WrongLayoutError: it is native already.
        WeightMapError, IncompleteError: tensors that do not fit the map or the config.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_to_transformers, options, progress=progress)


def draft_to_transformers(opened: OpenedSnapshot, options: ToTransformersOptions) -> Rewrite:
    """Plan original -> native; see `to_transformers`."""
    size = parse_size(options.max_shard_size)
    config = _config(opened.folder, wanted=Layout.ORIGINAL)
    moves = list(native_plan(opened.infos(), vision_heads=vision_heads(config)))
    check_complete(opened.checkpoint.names(), config)
    files = native_files(opened, config)
    facts = {"weight_map": WEIGHT_MAP.digest}
    if options.bundle:
        files = with_bundle(files)
        facts["bundle"] = hashlib.sha256(files.written[BUNDLE]).hexdigest()
    step = step_of("to_transformers", options, opened, moves, facts)
    return rewrite_of(step, moves, "safetensors", size, files, TO_NATIVE_NOTICE)


def to_original(
    folder: Path,
    target: Path,
    options: ToOriginalOptions,
    *,
    progress: Progress | None = None,
) -> Result:
    """Write a native snapshot in the original layout.

    Raises:
        NotQwenVLError: another architecture.
        WrongLayoutError: it is in the original layout already.
        WeightMapError, IncompleteError: tensors that do not fit the map or the config.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_to_original, options, progress=progress)


def draft_to_original(opened: OpenedSnapshot, options: ToOriginalOptions) -> Rewrite:
    """Plan native -> original; see `to_original`."""
    size = parse_size(options.max_shard_size)
    kind: Format = "bin" if options.format == "bin" else "safetensors"
    config = _config(opened.folder, wanted=Layout.NATIVE)
    moves = list(original_plan(opened.infos(), vision_heads=vision_heads(config)))
    check_complete(planned(moves), to_original_config(config))
    files = original_files(opened, config)
    facts = {"weight_map": WEIGHT_MAP.digest}
    step = step_of("to_original", options, opened, moves, facts)
    return rewrite_of(step, moves, kind, size, files, TO_ORIGINAL_NOTICE)


def to_safetensors(
    folder: Path,
    target: Path,
    options: ToSafetensorsOptions,
    *,
    progress: Progress | None = None,
) -> Result:
    """Write any snapshot's tensors under their own names in safetensors files.

    Raises:
        CheckpointError: weights that cannot be read.
        TiedError: tied tensors that cannot be written once.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_to_safetensors, options, progress=progress)


def draft_to_safetensors(opened: OpenedSnapshot, options: ToSafetensorsOptions) -> Rewrite:
    """Plan the same names in safetensors; see `to_safetensors`."""
    return _same_names("to_safetensors", opened, options, "safetensors", TO_SAFETENSORS_NOTICE)


def reshard(
    folder: Path, target: Path, options: ReshardOptions, *, progress: Progress | None = None
) -> Result:
    """Write any snapshot's tensors under their own names in files of another size or format.

    Raises:
        CheckpointError: weights that cannot be read, or that the format cannot hold.
        TiedError: tied tensors that cannot be written once.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_reshard, options, progress=progress)


def draft_reshard(opened: OpenedSnapshot, options: ReshardOptions) -> Rewrite:
    """Plan the same names in other files; see `reshard`."""
    kind = format_of(opened) if options.format == "keep" else options.format
    return _same_names(
        "reshard", opened, options, "bin" if kind == "bin" else "safetensors", RESHARD_NOTICE
    )


def format_of(opened: OpenedSnapshot) -> Format:
    """The format that a snapshot's weights are in."""
    suffixes = {file.suffix for file in opened.checkpoint.files}
    return "safetensors" if suffixes == {".safetensors"} else "bin"


def _same_names(
    name: str,
    opened: OpenedSnapshot,
    options: ToSafetensorsOptions | ReshardOptions,
    kind: Format,
    notice: str,
) -> Rewrite:
    size = parse_size(options.max_shard_size)
    metadata = header_metadata(opened, options.metadata)
    dropped = tied_names(opened, options.tied)
    moves = [
        Move(Op.RENAME, (name,), (TensorSpec(name, info.dtype, info.shape),), heads=1)
        for name, info in opened.infos().items()
        if name not in dropped
    ]
    facts = {"tied": dropped} if dropped else {}
    step = step_of(name, options, opened, moves, facts)
    files = SideFiles({}, opened.companions())
    made = rewrite_of(step, moves, kind, size, files, notice)
    # the aliases in the header are what safetensors' own save_model writes
    return dataclasses.replace(made, metadata=metadata | dropped, notes=tied_sentences(dropped))


def _config(folder: Path, *, wanted: Layout) -> dict[str, Any]:
    config = read_json_file(folder / "config.json")
    layout = layout_of(config)
    if layout is Layout.OTHER:
        kind = str(config.get("model_type"))[:40]
        raise NotQwenVLError(f"config.json has model_type {kind!r}: this is not a Qwen-VL")
    if layout is not wanted:
        raise WrongLayoutError(
            f"{folder} is in the {layout} layout, not in the {wanted} one",
            hint="It needs no conversion, or the other one.",
        )
    return config


def step_of(
    name: str,
    options: object,
    opened: OpenedSnapshot,
    moves: Sequence[TensorMove],
    facts: Mapping[str, Any],
) -> Step:
    """The entry in the result's lineage."""
    tensors = {
        "in": len({name for move in moves for name in move.sources}),
        "out": sum(len(move.targets) for move in moves),
    }
    return Step(
        step=name,
        options=provenance(options),
        tool=tool_version(),
        parent=opened.manifest.content_digest,
        parent_source=opened.manifest.source,
        facts={**facts, "tensors": tensors},
    )


def rewrite_of(
    step: Step,
    moves: Sequence[TensorMove],
    kind: Format,
    size: int,
    files: SideFiles,
    summary: str,
) -> Rewrite:
    """Put a plan together."""
    return Rewrite(
        step=step,
        moves=moves,
        format=kind,
        max_shard_bytes=size,
        written=files.written,
        carried=files.carried,
        summary=summary,
    )

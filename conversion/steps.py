"""The three conversions: snapshot folder and options in, snapshot folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conversion.errors import NotQwenVLError, WrongLayoutError
from conversion.layouts import (
    Layout,
    check_complete,
    layout_of,
    read_json_file,
    vision_heads,
)
from conversion.options import (
    ToOriginalOptions,
    ToSafetensorsOptions,
    ToTransformersOptions,
    parse_size,
)
from conversion.qwen_vl_files import SideFiles, native_files, original_files
from conversion.rewriting import (
    Format,
    OpenedSnapshot,
    Result,
    Rewrite,
    open_snapshot,
    rewrite_snapshot,
)
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
    size = parse_size(options.max_shard_size)
    with open_snapshot(folder, verify=options.verify, progress=progress) as opened:
        config = _config(folder, wanted=Layout.ORIGINAL)
        moves = list(native_plan(opened.infos(), vision_heads=vision_heads(config)))
        check_complete(opened.checkpoint.names(), config)
        files = native_files(opened, config)
        step = _step("to_transformers", options, opened, moves, {"weight_map": WEIGHT_MAP.digest})
        rewrite = _rewrite(step, moves, "safetensors", size, files, TO_NATIVE_NOTICE)
        return rewrite_snapshot(opened, target, rewrite, replace=options.replace, progress=progress)


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
    size = parse_size(options.max_shard_size)
    kind: Format = "bin" if options.format == "bin" else "safetensors"
    with open_snapshot(folder, verify=options.verify, progress=progress) as opened:
        config = _config(folder, wanted=Layout.NATIVE)
        moves = list(original_plan(opened.infos(), vision_heads=vision_heads(config)))
        check_complete(planned(moves), to_original_config(config))
        files = original_files(opened, config)
        step = _step("to_original", options, opened, moves, {"weight_map": WEIGHT_MAP.digest})
        rewrite = _rewrite(step, moves, kind, size, files, TO_ORIGINAL_NOTICE)
        return rewrite_snapshot(opened, target, rewrite, replace=options.replace, progress=progress)


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
        TargetExistsError: `target` holds something else.
    """
    size = parse_size(options.max_shard_size)
    with open_snapshot(folder, verify=options.verify, progress=progress) as opened:
        moves = [
            Move(Op.RENAME, (name,), (TensorSpec(name, info.dtype, info.shape),), heads=1)
            for name, info in opened.infos().items()
        ]
        files = SideFiles({}, opened.companions())
        step = _step("to_safetensors", options, opened, moves, {})
        rewrite = _rewrite(step, moves, "safetensors", size, files, TO_SAFETENSORS_NOTICE)
        return rewrite_snapshot(opened, target, rewrite, replace=options.replace, progress=progress)


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


def _step(
    name: str,
    options: ToTransformersOptions | ToOriginalOptions | ToSafetensorsOptions,
    opened: OpenedSnapshot,
    moves: list[Move],
    facts: dict[str, Any],
) -> Step:
    tensors = {
        "in": sum(len(move.sources) for move in moves),
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


def _rewrite(
    step: Step, moves: list[Move], kind: Format, size: int, files: SideFiles, summary: str
) -> Rewrite:
    return Rewrite(
        step=step,
        moves=moves,
        format=kind,
        max_shard_bytes=size,
        written=files.written,
        carried=files.carried,
        summary=summary,
    )

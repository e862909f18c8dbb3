"""Carry a drafted step out, or only say what it would do: what every rewriting command shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from conversion.disk_space import free_bytes
from conversion.opened import OpenedSnapshot, open_snapshot
from conversion.rewriting import (
    Result,
    Rewrite,
    bytes_needed,
    left_out,
    planned_shards,
    rewrite_snapshot,
    source_remarks,
)
from model_store.command import emit, progress_for
from model_store.options import from_args
from model_store.progress import Progress, human_bytes
from model_store.snapshot_folder import check_target, finished_result, is_resumable


class StepOptions(Protocol):
    """What the options of every rewriting step have."""

    @property
    def snapshot(self) -> str: ...
    @property
    def into(self) -> str | None: ...
    @property
    def verify(self) -> bool: ...
    @property
    def replace(self) -> bool: ...
    @property
    def allow_odd(self) -> bool: ...


O = TypeVar("O", bound=StepOptions)  # noqa: E741  options
Draft = Callable[[OpenedSnapshot, O], Rewrite]


def run_draft(
    folder: Path, target: Path, draft: Draft[O], options: O, *, progress: Progress | None = None
) -> Result:
    """Draft a step on a snapshot and write its result.

    Raises:
        ToolkitError: a source that does not suit the step, or a target that is taken.
    """
    with open_snapshot(folder, verify=options.verify, progress=progress) as opened:
        rewrite = draft(opened, options)
        return rewrite_snapshot(
            opened,
            target,
            rewrite,
            replace=options.replace,
            allow_odd=options.allow_odd,
            progress=progress,
        )


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A weight file that would be written."""

    name: str
    size: int  # bytes of its tensors
    tensors: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a step would do; nothing was written to find out."""

    step: str
    target: Path
    done: bool  # the target is exactly this result already
    resumes: bool  # a killed run left weight files to go on from
    tensors_in: int
    shards: tuple[PlannedFile, ...]
    written: tuple[str, ...]
    carried: tuple[str, ...]
    left_out: tuple[str, ...]
    needed: int
    free: int

    def json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "path": str(self.target),
            "done": self.done,
            "resumes": self.resumes,
            "tensors_in": self.tensors_in,
            "tensors_out": sum(shard.tensors for shard in self.shards),
            "shards": [
                {"name": shard.name, "bytes": shard.size, "tensors": shard.tensors}
                for shard in self.shards
            ],
            "written": list(self.written),
            "carried": list(self.carried),
            "left_out": list(self.left_out),
            "needed_bytes": self.needed,
            "free_bytes": self.free,
            "fits": self.needed <= self.free,
        }

    def text(self) -> str:
        """Say it in lines."""
        made = sum(shard.tensors for shard in self.shards)
        state = " (there already: nothing to do)" if self.done else ""
        state = " (going on from a killed run)" if self.resumes else state
        lines = [
            f"{self.step} would write {self.target}{state}",
            f"tensors: {self.tensors_in} read, {made} written",
            *[
                f"  {shard.name}: {human_bytes(shard.size)}, {shard.tensors} tensors"
                for shard in self.shards
            ],
            f"made anew: {', '.join(self.written) or 'nothing'}",
            f"copied: {', '.join(self.carried) or 'nothing'}",
            f"left out: {', '.join(self.left_out) or 'nothing'}",
            f"disk: {human_bytes(self.needed)} needed, {human_bytes(self.free)} free",
        ]
        return "\n".join(lines)


def preview_draft(
    folder: Path, target: Path, draft: Draft[O], options: O, *, progress: Progress | None = None
) -> Preview:
    """Say what `run_draft` would do; every check is made but the reading of all data.

    Raises:
        ToolkitError: what `run_draft` would refuse.
    """
    target = target.absolute()
    with open_snapshot(folder, verify=False, progress=progress) as opened:
        rewrite = draft(opened, options)
        done = finished_result(target, rewrite.step) is not None
        if not done:
            check_target(target, replace=options.replace)
            source_remarks(opened, allow_odd=options.allow_odd)
        shards = tuple(
            PlannedFile(
                shard.file, sum(tensor.nbytes for tensor in shard.tensors), len(shard.tensors)
            )
            for shard in planned_shards(rewrite)
        )
        return Preview(
            step=rewrite.step.step,
            target=target,
            done=done,
            resumes=not done and is_resumable(target, rewrite.key()),
            tensors_in=len({name for move in rewrite.moves for name in move.sources}),
            shards=shards,
            written=tuple(sorted(rewrite.written)),
            carried=tuple(rewrite.carried),
            left_out=tuple(left_out(opened, rewrite)),
            needed=bytes_needed(opened, rewrite),
            free=free_bytes(target.parent),
        )


def run_step(
    args: argparse.Namespace, options_class: type[O], draft: Draft[O], *, suffix: str
) -> int:
    """Run a rewriting command: the plan with --dry-run, else the step and its folder."""
    from hub_tools.snapshots import resolve_snapshot
    from hub_tools.targets import result_folder

    options = from_args(options_class, args)
    folder = resolve_snapshot(options.snapshot)
    target = result_folder(folder, options.into, suffix=suffix)
    progress = progress_for(args)
    if args.dry_run:
        preview = preview_draft(folder, target, draft, options, progress=progress)
        emit(args, preview.json(), preview.text())
        return 0
    result = run_draft(folder, target, draft, options, progress=progress)
    if not result.fresh:
        progress.log(f"already done: {result.folder}")
    for sentence in result.sentences():
        progress.log(sentence)
    emit(args, result.json(), str(result.folder))
    return 0

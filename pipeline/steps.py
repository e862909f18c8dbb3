"""KINDS: which steps a recipe may use, one row each: the command, its options, what it leaves."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model_store.options import from_table, option

Reads = Literal["content", "records", "files"]
Leaves = Literal["snapshot", "record", "card", "commits", "folder", "service"]


@dataclass(frozen=True, slots=True)
class StepKind:
    """A kind of step: any of them also runs alone, as `python -m <module>`."""

    uses: str
    module: str  # of the command; "" for the two kinds that the pipeline runs itself
    options: str  # "module:Class" of the options
    leaves: Leaves
    reads: Reads = "content"  # what of an input folder decides whether the step must run again
    into: str = ""  # the option that says where the result goes; filled in when left out


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """Run any program: the way to put a tool of your own in the place of a step."""

    run: tuple[str, ...] = option("program and arguments")
    output: str = option("folder that it makes")
    inputs: tuple[str, ...] = option("files that decide whether it must run again", default=())


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Serve a local hub until the run ends; later steps use it in place of the real hubs."""

    root: str = option("folder of the hub's repositories")


KINDS = {
    kind.uses: kind
    for kind in (
        StepKind("command", "", "pipeline.steps:CommandOptions", "folder"),
        StepKind("serve", "", "pipeline.steps:ServeOptions", "service"),
        StepKind(
            "download", "hub_tools.download", "hub_tools.download_options:DownloadOptions",
            "snapshot", into="local_dir",
        ),
        StepKind(
            "to-transformers", "conversion.to_transformers",
            "conversion.options:ToTransformersOptions", "snapshot", into="into",
        ),
        StepKind(
            "to-original", "conversion.to_original", "conversion.options:ToOriginalOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "to-safetensors", "conversion.to_safetensors",
            "conversion.options:ToSafetensorsOptions", "snapshot", into="into",
        ),
        StepKind(
            "reshard", "conversion.reshard", "conversion.options:ReshardOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "cast", "conversion.cast", "conversion.options:CastOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "text-only", "conversion.text_only", "conversion.options:TextOnlyOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "dequantize", "conversion.dequantize", "conversion.options:DequantizeOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "merge-lora", "conversion.merge_lora", "conversion.options:MergeLoraOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "rename", "conversion.rename", "conversion.options:RenameOptions",
            "snapshot", into="into",
        ),
        StepKind(
            "quantize", "quantization.gptq", "quantization.options:GptqConfig",
            "snapshot", into="into",
        ),
        StepKind(
            "compare", "verification.compare", "verification.options:CompareOptions",
            "record", into="report",
        ),
        StepKind(
            "card", "model_cards.generate", "model_cards.options:CardOptions",
            "card", "records",
        ),
        StepKind(
            "publish", "hub_tools.publish", "hub_tools.publish_options:PublishOptions",
            "commits", "files",
        ),
    )
}  # fmt: skip


def options_class(kind: StepKind) -> type[Any]:
    """Import the dataclass that holds a kind's options."""
    module, _, name = kind.options.partition(":")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls


def load_options(kind: StepKind, table: Mapping[str, Any]) -> Any:
    """Parse a recipe's table into the kind's options.

    Raises:
        UsageError: an unknown key, or a value of the wrong type.
    """
    return from_table(options_class(kind), table)


def default_result(kind: StepKind, work: Path, name: str) -> Path:
    """Where a step's result goes when its options do not say."""
    return work / (f"{name}-report" if kind.leaves == "record" else name)

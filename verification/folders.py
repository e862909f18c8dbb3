"""What the two snapshots say they are: layout, architecture, digests; refuses a senseless pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model_store.canonical import parse_json
from model_store.errors import CheckpointError
from model_store.manifest import Manifest, read_manifest
from verification.errors import NotComparableError
from verification.evidence import Side
from verification.packed import GptqForm, gptq_form


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes that two snapshots of one model share, whatever their layout."""

    hidden_size: int
    layers: int
    heads: int
    mlp_width: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    image_size: int
    patch_size: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A snapshot folder under comparison."""

    folder: Path
    side: Side
    architecture: Architecture
    form: GptqForm

    @property
    def original(self) -> bool:
        return self.side.layout == "original"


def read_subject(folder: Path, *, named: str) -> Subject:
    """Read what a snapshot is.

    Args:
        folder: the snapshot.
        named: what the user called it; used when the manifest does not know a repository.

    Raises:
        NotASnapshotError: no usable manifest.
        NotComparableError: not a Qwen-VL checkpoint.
    """
    manifest = read_manifest(folder)
    config = read_config(folder)
    layout = layout_of(config)
    if layout is None:
        raise NotComparableError(
            f"{folder.name} is not a Qwen-VL checkpoint: model_type is {config.get('model_type')!r}"
        )
    try:
        shape = _original(config) if layout == "original" else _native(config)
    except (KeyError, TypeError, ValueError) as error:
        raise NotComparableError(f"{folder.name}/config.json is incomplete: {error!r}") from error
    return Subject(
        folder=folder,
        side=Side(_label(folder, named), manifest.content_digest, layout, _source(manifest)),
        architecture=shape,
        form=form_of(folder),
    )


def check_comparable(reference: Subject, candidate: Subject) -> None:
    """Refuse two snapshots of different models.

    Raises:
        NotComparableError: naming the first size that differs.
    """
    for field in fields(Architecture):
        a = getattr(reference.architecture, field.name)
        b = getattr(candidate.architecture, field.name)
        if a != b:
            raise NotComparableError(
                f"another architecture: {field.name} is {a} in {reference.side.label} "
                f"and {b} in {candidate.side.label}"
            )


def form_of(folder: Path) -> GptqForm:
    """How a folder's packed weights, if any, are stored."""
    beside = folder / "quantize_config.json"
    return gptq_form(read_config(folder), _read_object(beside) if beside.is_file() else {})


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read a snapshot's config.json.

    Raises:
        CheckpointError: it cannot be read, or is no object.
    """
    return _read_object(folder / "config.json")


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = parse_json(path.read_bytes(), name=path.name)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not an object")
    return value


def layout_of(config: Mapping[str, Any]) -> str | None:
    """Return "original", "native", or None for what is not Qwen-VL."""
    if config.get("model_type") == "qwen_vl":
        return "native"
    # text-only Qwen-1 has the same model_type
    if config.get("model_type") == "qwen" and isinstance(config.get("visual"), dict):
        return "original"
    return None


def _original(config: Mapping[str, Any]) -> Architecture:
    visual = config["visual"]
    return Architecture(
        hidden_size=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        mlp_width=int(config["intermediate_size"]) // 2,  # the 2023 key counts both branches
        vocabulary=int(config["vocab_size"]),
        vision_width=int(visual["width"]),
        vision_layers=int(visual["layers"]),
        vision_heads=int(visual["heads"]),
        image_size=int(visual["image_size"]),
        patch_size=int(visual["patch_size"]),
    )


def _native(config: Mapping[str, Any]) -> Architecture:
    text, vision = config["text_config"], config["vision_config"]
    return Architecture(
        hidden_size=int(text["hidden_size"]),
        layers=int(text["num_hidden_layers"]),
        heads=int(text["num_attention_heads"]),
        mlp_width=int(text["intermediate_size"]),
        vocabulary=int(text["vocab_size"]),
        vision_width=int(vision["hidden_size"]),
        vision_layers=int(vision["num_hidden_layers"]),
        vision_heads=int(vision["num_attention_heads"]),
        image_size=int(vision["image_size"]),
        patch_size=int(vision["patch_size"]),
    )


def _label(folder: Path, named: str) -> str:
    """A name without machine paths: the repository's as typed, or the folder's own."""
    return folder.name if Path(named).exists() else named


def _source(manifest: Manifest) -> str:
    if manifest.source is None:
        return ""
    source = manifest.source
    return f"{source.hub}:{source.repo_id}@{source.commit}"

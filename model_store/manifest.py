"""ferry.manifest.json: what a snapshot folder holds, where it came from, and its digests.

Canonical JSON (RFC 8785), no timestamps and no machine paths: the same input and options give the
same manifest. `content_digest` covers weights, config, tokenizer and processor files only, so
records and cards can be added without changing what they speak of. Format: docs/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.canonical import canonical_digest, canonical_json, parse_json
from model_store.errors import DigestMismatchError, NotASnapshotError, StoreError
from model_store.files import sha256_file, write_bytes
from model_store.paths import check_paths, inside
from model_store.progress import NoProgress, Progress

MANIFEST_NAME = "ferry.manifest.json"
SCHEMA = "ferry.manifest/1"

# what makes a checkpoint the one it is; everything else may be added or mended beside it
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth"})
_CONTENT_NAMES = frozenset(
    {
        "config.json", "generation_config.json", "quantize_config.json", "adapter_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.json",
        "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
    }
)  # fmt: skip
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def is_content(path: str) -> bool:
    """Whether a file of a snapshot counts for its content digest."""
    name = PurePosixPath(path)
    if name.parts[0] == "records":
        return False
    return (
        name.suffix in _WEIGHTS
        or name.suffix == ".tiktoken"
        or name.name in _CONTENT_NAMES
        or name.name.endswith((".safetensors.index.json", ".bin.index.json"))
    )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a snapshot: POSIX path, bytes, lowercase hex sha256."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if self.size < 0 or not _SHA256.match(self.sha256):
            raise StoreError(f"manifest entry for {self.path!r} has a bad size or sha256")

    def json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """One tensor's dtype (safetensors' name for it), shape and sha256 of its row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def json(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a snapshot was downloaded from; `commit` is what the revision was pinned to."""

    hub: str
    repo_id: str
    revision: str
    commit: str

    def json(self) -> dict[str, Any]:
        return {
            "hub": self.hub,
            "repo_id": self.repo_id,
            "revision": self.revision,
            "commit": self.commit,
        }


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a snapshot's lineage: what was done to which parent, with which options."""

    step: str
    options: Mapping[str, Any]
    tool: str
    parent: str  # the parent's content_digest
    parent_source: Source | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # calibration digest, weight map, …

    def json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "options": dict(self.options),
            "tool": self.tool,
            "parent": {
                "content_digest": self.parent,
                "source": self.parent_source.json() if self.parent_source else None,
            },
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot's files, lineage and, when known, tensor digests."""

    files: tuple[FileEntry, ...]
    source: Source | None = None
    lineage: tuple[Step, ...] = ()
    tensors: Mapping[str, TensorDigest] | None = None

    def __post_init__(self) -> None:
        check_paths(entry.path for entry in self.files)
        # a frozen dataclass is sorted once, here, so that equal folders are equal manifests
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda entry: entry.path)))

    @property
    def content(self) -> tuple[FileEntry, ...]:
        """The files that the content digest covers."""
        return tuple(entry for entry in self.files if is_content(entry.path))

    @property
    def content_digest(self) -> str:
        """Lowercase hex sha256 over the canonical list of content files."""
        return canonical_digest([entry.json() for entry in self.content])

    @property
    def origin(self) -> Source | None:
        """Where it, or the nearest of its ancestors that came from a hub, came from."""
        if self.source is not None:
            return self.source
        parents = (step.parent_source for step in reversed(self.lineage))
        return next((source for source in parents if source is not None), None)

    def entry(self, path: str) -> FileEntry | None:
        return next((entry for entry in self.files if entry.path == path), None)

    def json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "source": self.source.json() if self.source else None,
            "content_digest": self.content_digest,
            "files": [entry.json() for entry in self.files],
            "lineage": [step.json() for step in self.lineage],
            "tensors": None
            if self.tensors is None
            else {name: digest.json() for name, digest in self.tensors.items()},
        }


def tool_version() -> str:
    """This tool's name and version, as lineage and user agent give it."""
    try:
        return f"modelferry {metadata.version('modelferry')}"
    except metadata.PackageNotFoundError:
        return "modelferry (not installed)"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically; call it last, a folder is a snapshot from then on."""
    write_bytes(folder / MANIFEST_NAME, canonical_json(manifest.json()))


def read_manifest(folder: Path) -> Manifest:
    """Read a snapshot's manifest; the files themselves are not hashed (see `verify_snapshot`).

    Raises:
        NotASnapshotError: no manifest, or not one of a schema that we know.
    """
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotASnapshotError(f"{folder} is no snapshot: it has no {MANIFEST_NAME}") from error
    return parse_manifest(data, name=str(folder / MANIFEST_NAME))


def parse_manifest(data: bytes, *, name: str) -> Manifest:
    """Build a manifest from its JSON; everything in it is checked.

    Raises:
        NotASnapshotError: not JSON, another schema, a missing key, a wrong type, or a wrong
            content digest.
    """
    try:
        value = parse_json(data, name=name)
    except StoreError as error:
        raise NotASnapshotError(str(error)) from error
    try:
        if value["schema"] != SCHEMA:
            raise NotASnapshotError(f"{name} has schema {value['schema']!r}, not {SCHEMA!r}")
        manifest = Manifest(
            files=tuple(
                FileEntry(str(entry["path"]), int(entry["size"]), str(entry["sha256"]))
                for entry in value["files"]
            ),
            source=_source(value["source"]),
            lineage=tuple(_step(step) for step in value["lineage"]),
            tensors=_tensors(value["tensors"]),
        )
        promised = value["content_digest"]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise NotASnapshotError(f"{name} is not a manifest: {error!r}") from error
    try:
        actual = manifest.content_digest
    except StoreError as error:
        raise NotASnapshotError(f"{name} is not a manifest: its files {error}") from error
    if promised != actual:
        raise NotASnapshotError(f"{name} contradicts itself: its content digest is wrong")
    return manifest


def _source(value: Any) -> Source | None:
    if value is None:
        return None
    return Source(
        str(value["hub"]), str(value["repo_id"]), str(value["revision"]), str(value["commit"])
    )


def _step(value: Any) -> Step:
    return Step(
        step=str(value["step"]),
        options=dict(value["options"]),
        tool=str(value["tool"]),
        parent=str(value["parent"]["content_digest"]),
        parent_source=_source(value["parent"]["source"]),
        facts=dict(value["facts"]),
    )


def _tensors(value: Any) -> dict[str, TensorDigest] | None:
    if value is None:
        return None
    return {
        str(name): TensorDigest(
            str(digest["dtype"]), tuple(int(n) for n in digest["shape"]), str(digest["sha256"])
        )
        for name, digest in value.items()
    }


def scan(folder: Path, *, known: Iterable[FileEntry] = ()) -> tuple[FileEntry, ...]:
    """Hash every file below `folder`, the manifest and `.partial` leftovers excepted.

    Args:
        folder: the snapshot.
        known: entries whose bytes were hashed while they were written; not hashed again when the
            size agrees.

    Raises:
        StoreError: something that is no plain file, such as a link out of the folder.
    """
    trusted = {entry.path: entry for entry in known}
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        relative = path.relative_to(folder).as_posix()
        if relative == MANIFEST_NAME or relative.endswith(".partial"):
            continue
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path} is not a plain file")
        size = path.stat().st_size
        entry = trusted.get(relative)
        if entry is None or entry.size != size:
            entry = FileEntry(relative, size, sha256_file(path))
        entries.append(entry)
    return tuple(entries)


def refresh_manifest(folder: Path) -> Manifest:
    """Take records and cards that were added in place into the manifest.

    Raises:
        StoreError: a content file was changed, added or removed: that needs a new snapshot.
    """
    old = read_manifest(folder)
    new = replace(old, files=scan(folder, known=old.content))
    if new.content_digest != old.content_digest:
        raise StoreError(
            f"content files of {folder} changed after its manifest was written",
            hint="Make a new snapshot; verify this one with `ferry verify`.",
        )
    write_manifest(folder, new)
    return new


def verify_snapshot(folder: Path, *, progress: Progress | None = None) -> Manifest:
    """Hash every file that the manifest names and compare.

    Raises:
        DigestMismatchError: a file's bytes changed.
        StoreError: a file is missing.
    """
    manifest = read_manifest(folder)
    total = sum(entry.size for entry in manifest.files)
    with (progress or NoProgress()).task("verify", total, unit="B") as task:
        for entry in manifest.files:
            check_file(folder, entry)
            task.advance(entry.size)
    return manifest


def check_file(folder: Path, entry: FileEntry) -> None:
    """Hash one file of a snapshot and compare.

    Raises:
        DigestMismatchError: its bytes changed.
        StoreError: it is missing.
    """
    path = inside(folder, entry.path)
    if not path.is_file():
        raise StoreError(
            f"{entry.path} is missing from {folder}",
            hint="Download the snapshot again: only what is missing is fetched.",
        )
    actual = sha256_file(path)
    if actual != entry.sha256:
        raise DigestMismatchError(entry.path, expected=entry.sha256, actual=actual)

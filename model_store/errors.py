"""ToolkitError and what can go wrong with files at rest.

ToolkitError                 root of every room's tree; the only type a command catches
├── UsageError               the request itself makes no sense (exit 2)
├── IncompleteEvidenceError  a verdict was asked for and data is missing (exit 3)
└── StoreError               a blob, snapshot or checkpoint on disk
    ├── DigestMismatchError      the bytes are not the promised ones
    ├── UnsafePathError          a listed path would leave its folder
    ├── NotASnapshotError        a folder without a usable manifest
    ├── TargetExistsError        the place to write to is taken by something else
    ├── BusyError                another process holds the lock
    ├── GptqFormatError          what GPTQ's packed tensors cannot hold
    └── CheckpointError          weights that cannot be read
        ├── UnsafeCheckpointError    weights that would run code, or lie about their size
        └── WeightMapError           tensors that do not fit the table of names
            ├── UnmappedTensorError      a tensor that no rule names
            ├── MissingPartError         a part of a fused tensor is not there
            ├── UnevenSplitError         a tensor that does not divide among its targets
            └── UnequalPartsError        parts that become one tensor contradict each other
"""

from __future__ import annotations


class ToolkitError(Exception):
    """Something the user can act on; anything else is our bug and keeps its traceback."""

    hint = ""  # one imperative sentence, printed under the message
    exit_code = 4

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class UsageError(ToolkitError):
    """The request itself makes no sense."""

    exit_code = 2


class IncompleteEvidenceError(ToolkitError):
    """A verdict was asked for, and data that it needs is missing."""

    exit_code = 3


class StoreError(ToolkitError):
    """A blob, snapshot or checkpoint on disk is not what it should be."""


class DigestMismatchError(StoreError):
    """A file does not hash to what was promised for it."""

    hint = "Run the download again: only the damaged file is fetched."

    def __init__(self, path: str, *, expected: str, actual: str) -> None:
        super().__init__(f"{path}: sha256 is {actual[:12]}…, {expected[:12]}… was promised")
        self.path, self.expected, self.actual = path, expected, actual


class UnsafePathError(StoreError):
    """A listed path would leave its folder, or cannot exist on every system."""

    hint = "Do not trust this repository or folder; report it to its owner."

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"unsafe path {path!r}: {reason}")
        self.path, self.reason = path, reason


class NotASnapshotError(StoreError):
    """A folder that has no usable ferry.manifest.json."""

    hint = "Name a snapshot folder, or run `python -m hub_tools.adopt FOLDER` on a plain one."


class TargetExistsError(StoreError):
    """The place to write to holds something that this step did not make."""

    hint = "Choose another target, or pass --replace to overwrite a snapshot of ours."


class BusyError(StoreError):
    """Another process is writing the same thing."""

    hint = "Wait for the other process, or stop it."


class GptqFormatError(StoreError):
    """Codes, zero points or shapes that the GPTQ format cannot hold."""


class CheckpointError(StoreError):
    """A checkpoint that cannot be read as one."""

    hint = "Download the files again; if it stays, report it to whoever published them."


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that would run code, or whose header lies; nothing of it is used."""

    hint = "Do not load this file with other tools either; get the weights from a source you trust."


class WeightMapError(CheckpointError):
    """Tensors that do not fit the table of names."""

    hint = "This is not the architecture that the table describes, or the checkpoint is damaged."


class UnmappedTensorError(WeightMapError):
    """A tensor that no rule names."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no rule maps tensor {name!r}")
        self.name = name


class MissingPartError(WeightMapError):
    """A part of a fused tensor is not there."""

    def __init__(self, name: str, *, of: str) -> None:
        super().__init__(f"tensor {name!r} is missing: it is a part of {of!r}")
        self.name = name


class UnevenSplitError(WeightMapError):
    """A tensor that does not divide among its targets."""

    def __init__(self, name: str, shape: tuple[int, ...], *, dim: int, into: int) -> None:
        super().__init__(f"{name} has shape {shape}: dim {dim} does not divide by {into}")
        self.name, self.shape = name, shape


class UnequalPartsError(WeightMapError):
    """Parts that become one tensor contradict each other."""

    def __init__(self, first: str, second: str, *, what: str) -> None:
        super().__init__(f"{first} and {second} become one tensor but differ in {what}")
        self.first, self.second = first, second

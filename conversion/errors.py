"""What stops a conversion.

ConversionError
├── NotQwenVLError        another architecture, or a config that contradicts itself
├── WrongLayoutError      a checkpoint that is already, or not yet, in the layout asked for
├── IncompleteError       tensors that the config promises and the checkpoint does not have
├── ConflictingWeightsError  safetensors and torch files side by side that differ
├── OddSourceError        files beside the weights that contradict them, or name code elsewhere
├── NotItsSourceError     a snapshot that was not made of the one it is compared with
├── MissingFileError      a file that the conversion needs is not in the snapshot
└── BundleError           our modules cannot be put into one file: our bug

Tensors that fit no rule are a `WeightMapError` of model_store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_store.errors import ToolkitError
from model_store.progress import human_bytes


class ConversionError(ToolkitError):
    """A checkpoint that cannot be converted as asked."""


class NotQwenVLError(ConversionError):
    """Another architecture, or a config that contradicts itself."""

    hint = "This step knows Qwen-VL only; to_safetensors keeps names and takes any architecture."


class WrongLayoutError(ConversionError):
    """A checkpoint that is already, or not yet, in the layout asked for."""


class IncompleteError(ConversionError):
    """Tensors that the config promises and the checkpoint lacks, or has beyond it."""

    hint = "Download the snapshot again, or compare config.json with the weights it came with."

    def __init__(self, what: str, names: Sequence[str]) -> None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        super().__init__(f"{what}: {', '.join(names[:3])}{more}")
        self.names = tuple(names)


class MissingFileError(ConversionError):
    """A file that the conversion needs is not in the snapshot."""

    hint = "Download the whole repository: the config, the tokenizer and the weights."

    def __init__(self, what: str) -> None:
        super().__init__(f"the snapshot has no {what}")


class ConflictingWeightsError(ConversionError):
    """Weights of two formats side by side that are not the same tensors."""

    hint = "Remove the files that are not meant; --no-verify takes the safetensors unseen."

    def __init__(self, ours: Path, theirs: Path, names: Sequence[str]) -> None:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        super().__init__(
            f"{ours.name} and {theirs.name} of {ours.parent} disagree in "
            f"{', '.join(names[:3])}{more}"
        )
        self.names = tuple(names)


class OddSourceError(ConversionError):
    """Files beside the weights contradict them, or name code of another repository."""

    hint = "Correct the file, or download it again; --allow-odd goes on and notes it in CHANGES.md."


class NotItsSourceError(ConversionError):
    """A snapshot that was not made, by a conversion, of the one it is compared with."""

    hint = "Name the snapshot that its last step read; conversion.diff takes any two."


class BundleError(ConversionError):
    """Our modules do something that cannot be put into one file."""

    hint = "This is a bug of modelferry; without --bundle the conversion works."


class DiskSpaceError(ConversionError):
    """The result does not fit on the disk."""

    hint = "Free some space, or name another disk with --into."

    def __init__(self, place: Path, needed: int, free: int) -> None:
        super().__init__(
            f"{human_bytes(needed)} are needed and {human_bytes(free)} are free where "
            f"{place.parent} is"
        )
        self.needed, self.free = needed, free


class QuantizedError(ConversionError):
    """A step that needs plain weights was given packed ones, or the other way round."""


class AdapterError(ConversionError):
    """A LoRA adapter that cannot be used, or does not fit its base."""

    hint = "Check that the adapter was trained on this model, with plain LoRA on linear layers."


class RuleTableError(ConversionError):
    """A user's table of names that contradicts itself."""

    hint = "See `python -m conversion.rename --help` for what a table may say."


class TiedError(ConversionError):
    """Tensors that cannot be tied or taken apart as asked."""

"""What stops a conversion.

ConversionError
├── NotQwenVLError        another architecture, or a config that contradicts itself
├── WrongLayoutError      a checkpoint that is already, or not yet, in the layout asked for
├── IncompleteError       tensors that the config promises and the checkpoint does not have
└── MissingFileError      a file that the conversion needs is not in the snapshot

Tensors that fit no rule are a `WeightMapError` of model_store.
"""

from __future__ import annotations

from collections.abc import Sequence

from model_store.errors import ToolkitError


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

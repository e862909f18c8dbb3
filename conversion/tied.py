"""Tensors that two names share: found, and written once or twice as asked.

Torch files let names share a storage; safetensors cannot. Written once, the other name is in no
file and no index, as transformers leaves it: `tie_word_embeddings` brings it back when loading.
"""

from __future__ import annotations

from collections.abc import Mapping

from conversion.errors import TiedError
from conversion.layouts import read_json_file
from conversion.opened import OpenedSnapshot
from model_store.tensor_sources import StoredTensor, same_bytes

KEEP_ONE, DUPLICATE = "keep-one", "duplicate"
POLICIES = (DUPLICATE, KEEP_ONE)
# the output side of tied embeddings: what transformers drops and makes again
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


def tied_names(opened: OpenedSnapshot, policy: str) -> dict[str, str]:
    """Return dropped name -> the name that keeps the bytes; empty unless the policy is keep-one.

    Raises:
        TiedError: readers would not bring the dropped names back.
    """
    if policy == DUPLICATE:
        return {}
    dropped = {name: group[0] for group in shared_groups(opened) for name in group[1:]}
    if dropped and not _ties(opened):
        raise TiedError(
            f"{next(iter(dropped))!r} shares its bytes, and config.json does not say "
            "tie_word_embeddings: readers would make it up",
            hint="Write both copies with --tied duplicate.",
        )
    return dropped


def shared_groups(opened: OpenedSnapshot) -> list[list[str]]:
    """Names of the same bytes: one place of a file, or equal ends of tied embeddings.

    The first of a group is the one to keep.
    """
    places: dict[tuple[object, ...], list[str]] = {}
    for name in opened.checkpoint.names():
        tensor = opened.checkpoint.source(name)
        if not isinstance(tensor, StoredTensor):  # no bytes, or a strided view
            continue
        key = (opened.checkpoint.file(name), tensor.start, tensor.dtype, tensor.shape)
        places.setdefault(key, []).append(name)
    groups = [group for group in places.values() if len(group) > 1]
    if _ties(opened):
        groups += _equal_ends(opened, {name for group in groups for name in group})
    return [sorted(group, key=lambda name: name.endswith(_HEADS)) for group in groups]


def tied_sentences(dropped: Mapping[str, str]) -> list[str]:
    """Say what was written once, for CHANGES.md."""
    return [f"`{name}` is tied to `{kept}` and written once." for name, kept in dropped.items()]


def _ties(opened: OpenedSnapshot) -> bool:
    path = opened.folder / "config.json"
    return path.is_file() and read_json_file(path).get("tie_word_embeddings") is True


def _equal_ends(opened: OpenedSnapshot, known: set[str]) -> list[list[str]]:
    names = opened.checkpoint.names()
    heads = [name for name in names if name.endswith(_HEADS) and name not in known]
    inputs = [name for name in names if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if len(heads) != 1 or len(inputs) != 1:
        return []
    first, second = (opened.checkpoint.source(name) for name in (inputs[0], heads[0]))
    return [[inputs[0], heads[0]]] if same_bytes(first, second) else []

"""The settings that decide what a model computes, of two folders in either layout.

A wrong epsilon or rotary base hides in the last digits of every logit; in config.json it is plain.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verification.evidence import Finding

# what says who wrote the file, or how it is stored, and changes no result
_SILENT = frozenset(
    {
        "_attn_implementation", "_attn_implementation_internal", "_name_or_path", "architectures",
        "auto_map", "dtype", "id2label", "label2id", "original_config", "output_attentions",
        "output_hidden_states", "problem_type", "quantization_config", "return_dict",
        "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
_MISSING = "absent"
_NAMED = 3


def settings_finding(reference: Path, candidate: Path) -> Finding:
    """Count the settings that differ, after both were read as the native layout has them.

    Raises:
        ModelError: a config.json that cannot be used.
    """
    a, b = _settings(reference), _settings(candidate)
    names = sorted(a.keys() | b.keys())
    differing = [name for name in names if a.get(name, _MISSING) != b.get(name, _MISSING)]
    words = [f"{n}: {a.get(n, _MISSING)} against {b.get(n, _MISSING)}" for n in differing[:_NAMED]]
    if len(differing) > _NAMED:
        words.append(f"{len(differing) - _NAMED} more")
    return Finding(len(differing), len(names), note=", ".join(words))


def _settings(folder: Path) -> dict[str, Any]:
    from qwen_vl.loading import FolderConfig  # torch loads here

    return _flat("", FolderConfig.read(folder).build().to_dict())


def _flat(prefix: str, table: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name in _SILENT:
            continue
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix}{name}.", value)
        else:
            found[prefix + name] = value
    return found

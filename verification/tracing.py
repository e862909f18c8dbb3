"""What every module of a model takes and gives on one prompt, and where a candidate first errs.

Two runs of the candidate answer two questions. On its own inputs: how far has the error got
(propagated)? With every module fed what the reference fed it: whose fault is it (local)? A module
after a broken one has a propagated error and no local one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from verification.answers import Prompt, Speaker
from verification.evidence import LayerError

# relative error that other kernels of one dtype leave in a module
FLOORS = {"float32": 1e-6, "bfloat16": 8e-3, "float16": 1e-3}
FAULT = 10.0  # a module is at fault above so many floors
TAIL = 32  # prompt positions whose logits are made, for the independent forward
POSITIONS = "model.vision_tower.position_embedding"
FEATURES = "model.multi_modal_projector"
HEAD = "lm_head"
Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trace:
    """Inputs and outputs by module name, in the order of the run; one prompt."""

    taken: Mapping[str, Values]
    given: Mapping[str, Values]

    @property
    def logits(self) -> Tensor:
        """(last positions, vocabulary)."""
        return torch.from_numpy(self.given[HEAD][0])


def traced_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that errors are told apart by: blocks, and what stands between them."""
    fixed = ("model.vision_tower.pre_layernorm", FEATURES, "model.language_model.norm", HEAD)
    stacks = ("model.vision_tower.layers", "model.language_model.layers")
    return {
        name: module
        for name, module in model.named_modules()
        if name in fixed or name.rpartition(".")[0] in stacks
    }


@torch.inference_mode()
def trace(speaker: Speaker, prompt: Prompt, feed: Trace | None = None) -> Trace:
    """Run a prompt and note what passes; with `feed`, each module gets that trace's input."""
    taken: dict[str, Values] = {}
    given: dict[str, Values] = {}

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            taken[name] = _values(args[0])
            if name.endswith("pre_layernorm"):
                # patches plus positions are no module of their own: what arrives here is theirs
                given[POSITIONS] = taken[name]
            fed = None if feed is None else feed.taken.get(name)
            if fed is None or fed.shape != taken[name].shape:
                return None
            return (torch.from_numpy(fed).to(args[0]), *args[1:])

        return hook

    def after(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            given[name] = _values(out if isinstance(out, Tensor) else out[0])

        return hook

    with _hooked(traced_modules(speaker.model), before, after):
        speaker.tail(prompt, min(TAIL, len(prompt.input_ids)))
    return Trace(taken, given)


@contextmanager
def _hooked(
    modules: Mapping[str, nn.Module], before: Callable[..., Any], after: Callable[..., Any]
) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(before(name)) for name, m in modules.items()]
    handles += [m.register_forward_hook(after(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _values(tensor: Tensor) -> Values:
    return tensor.detach().float().cpu().numpy()


def layer_errors(
    references: Sequence[Trace], candidates: Sequence[tuple[Trace, Trace]]
) -> list[LayerError]:
    """The error of each module, the worst over the prompts.

    Args:
        references: one trace per prompt.
        candidates: per prompt the candidate's trace on its own inputs, and on the reference's.
    """
    found: dict[str, LayerError] = {}
    for wanted, (own, fed) in zip(references, candidates, strict=True):
        for name, value in wanted.given.items():
            error = LayerError(
                name, relative_error(own.given[name], value), relative_error(fed.given[name], value)
            )
            seen = found.get(name)
            if seen is None:
                found[name] = error
            else:
                worst = max(seen.propagated, error.propagated), max(seen.local, error.local)
                found[name] = LayerError(name, *worst)
    return list(found.values())


def relative_error(value: Values, wanted: Values) -> float:
    """|value - wanted| / |wanted|, Frobenius; infinite when the shapes differ."""
    if value.shape != wanted.shape:
        return float("inf")
    a, b = value.astype(np.float64), wanted.astype(np.float64)
    distance, norm = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return distance / norm if norm else (float("inf") if distance else 0.0)


def at_fault(errors: Sequence[LayerError], dtype: str) -> list[LayerError]:
    """Modules whose own error is above what kernels of the dtype explain, in the order of the run.

    Errors are of the run with the reference's inputs, so the first is where the trouble begins.
    """
    limit = FAULT * FLOORS[dtype]
    return [error for error in errors if not error.local <= limit]


def tensors_inside(module: str, names: Sequence[str]) -> list[str]:
    """Of some tensor names those that belong to a module."""
    return [name for name in names if name == module or name.startswith(module + ".")]

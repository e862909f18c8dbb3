"""Linears beside the decoder layers: which may be asked for, and how the head is quantized."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from model_store.errors import UsageError
from quantization.batches import Batch
from quantization.blocks import decoder_layers, ended
from quantization.errors import UnsupportedModelError
from quantization.layer_store import Journal
from quantization.module_rules import fits
from quantization.options import GptqConfig
from quantization.sequential import LayerError, LayerRun

HEAD = "lm_head"


def wanted_outside(
    model: nn.Module, inside: Mapping[str, nn.Linear], config: GptqConfig
) -> dict[str, nn.Linear]:
    """The linears that `--include` adds to the decoder layers' own.

    Raises:
        UsageError: a pattern that names no linear.
        UnsupportedModelError: a linear that is not run behind the decoder, or a tied head.
    """
    outside = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in inside
    }
    found: dict[str, nn.Linear] = {}
    for pattern in config.include:
        mine = [name for name in outside if fits(name, pattern)]
        if not mine and not any(fits(name, pattern) for name in inside):
            raise UsageError(
                f"--include {pattern!r} names no linear of this model",
                hint=f"Beside its decoder layers it has {', '.join(list(outside)[:3]) or 'none'}.",
            )
        found |= {name: outside[name] for name in mine}
    for name in found:
        if name != HEAD:
            raise UnsupportedModelError(
                f"--include asks for {name}, which runs before the decoder",
                hint="Only lm_head can be added; vision towers stay as they are.",
            )
    if found and getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        raise UnsupportedModelError(
            f"{HEAD} shares its weight with the embedding",
            hint="Leave it out: quantizing it would change the embedding.",
        )
    return found


@torch.no_grad()
def quantize_head(
    model: nn.Module,
    head: Mapping[str, nn.Linear],
    batches: list[Batch],
    config: GptqConfig,
    journal: Journal,
) -> list[LayerError]:
    """Quantize what runs behind the last layer, from what reaches it there."""
    layers = decoder_layers(model)
    mine: dict[int, Tensor] = {}  # every pass runs in a thread of its own, and has its own states

    def work(hidden: Tensor) -> Callable[[], Tensor]:
        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)

        def run() -> Tensor:
            mine[threading.get_ident()] = hidden
            model(input_ids=ids, use_cache=False)
            return hidden

        return run

    run = LayerRun(config, journal.sink, batches, head)
    with ended(layers, lambda: mine[threading.get_ident()]):
        run.finish([work(one.hidden) for one in batches])
    journal.finished_head(run.errors)
    return run.errors

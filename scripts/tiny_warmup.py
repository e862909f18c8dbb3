"""First stage: vision tower and resampler learn alone, from heads that are thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the field's name
from torch.utils.data import DataLoader, Dataset

from qwen_vl.image_processing import IMAGE_MEAN, IMAGE_STD
from qwen_vl.modeling import QwenVLForConditionalGeneration
from scripts.tiny_cells import CELLS, CLASSES, DIGITS, cell_targets, stacked
from scripts.tiny_model import matrices_and_rest
from scripts.tiny_muon import Muon
from scripts.tiny_scenes import pixels, warmup_scene

PICTURES = 48
_EMPTY_WEIGHT = 0.25  # most cells show nothing
MUON, _ADAM = 0.02, 1e-3
_PLACE, _EDGE = 8.0, 0.5  # weights of the gap, a share of the picture, and of an edge's bins
BINS = 100  # of an edge: boxes are told in hundredths of the picture
_SPREAD = 1.0  # bins; the nearer a guess, the less it is wrong
_PARTS = [*CLASSES.values(), *[10] * DIGITS, 6, 4 * BINS]  # outputs of the heads


class CellHeads(nn.Module):
    """All heads of one side in one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(_PARTS))

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.out(self.norm(x))
        return seen


@dataclass(frozen=True, slots=True)
class CellLoss:
    """Summed loss, and what it is made of: shares right on cells that show something."""

    loss: Tensor
    right: dict[str, float]


def cell_loss(out: Tensor, targets: dict[str, Tensor], *, measure: bool) -> CellLoss:
    """Judge heads (images, 64, outputs) against targets from `cell_targets`."""
    parts = torch.split(out, _PARTS, dim=-1)
    loss, right = out.new_zeros(()), {}
    for row, (name, logits) in enumerate(zip(CLASSES, parts, strict=False)):
        truth = targets["classes"][:, row].flatten()
        shown = truth != CLASSES[name] - 1
        each = F.cross_entropy(logits.flatten(0, 1), truth, reduction="none")
        loss = loss + (each * shown).sum() / shown.sum().clamp(min=1)
        loss = loss + _EMPTY_WEIGHT * (each * ~shown).sum() / (~shown).sum().clamp(min=1)
        if measure and shown.any():
            right[name] = _share(logits.flatten(0, 1)[shown].argmax(-1) == truth[shown])
    filled = targets["digits"][:, 0] >= 0
    for row, logits in enumerate(parts[len(CLASSES) : -2]):
        truth = targets["digits"][:, row]
        loss = loss + F.cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=-100) / 4
        if measure:
            name = "hundreds" if row < DIGITS // 2 else "tens"
            share = _share(logits.argmax(-1)[filled] == truth[filled])
            right[name] = right.get(name, 0.0) + share / (DIGITS // 2)
    places = targets["places"].mT[filled]
    gaps = (parts[-2][filled] - places).abs()
    bins = parts[-1][filled].view(-1, 4, BINS)
    loss = loss + _PLACE * gaps.mean() + _EDGE * edge_loss(bins, places[:, 2:])
    if measure:
        right["edge gap"] = float(gaps.detach()[:, 2:].mean())
        right["bin gap"] = float((bins.argmax(-1) / BINS - places[:, 2:]).abs().mean())
    return CellLoss(loss, right)


def edge_loss(bins: Tensor, edges: Tensor) -> Tensor:
    """Cross-entropy with a bell around each edge, summed over the four: a place in classes.

    Classes are learned faster than a number is; the bell says that the next bin is nearly right.

    Args:
        bins: (cells, 4, 100) logits.
        edges: (cells, 4) in [0, 1).
    """
    away = edges[..., None] * BINS - torch.arange(BINS)
    bell = (-0.5 * (away / _SPREAD).square()).softmax(-1)
    losses = torch.logsumexp(bins, -1) - (bell * bins).sum(-1)
    return losses.sum(-1).mean()


def _share(right: Tensor) -> float:
    return float(right.float().mean())


class WarmupBatches(Dataset[dict[str, Any]]):
    """Batch number `step` of the warm-up, drawn when asked for."""

    def __init__(self, seed: int, steps: int, *, pictures: int = PICTURES) -> None:
        self.seed, self.steps, self.pictures = seed, steps, pictures

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        progress = min(2 * step / self.steps, 1.0)
        scenes = [warmup_scene(self.seed, step, n, progress) for n in range(self.pictures)]
        shown = np.stack([pixels(scene.image) for scene in scenes])
        return {"pixels": shown, **stacked([cell_targets(scene) for scene in scenes])}


def loaded(batches: Dataset[dict[str, Any]], start: int) -> Iterator[dict[str, Any]]:
    """Draw ahead in a process of its own, from step `start` on."""
    rest = range(start, len(batches))  # type: ignore[arg-type]  # sized
    yield from DataLoader(batches, batch_size=None, sampler=rest, num_workers=1, prefetch_factor=6)


def pixel_values(shown: Tensor) -> Tensor:
    """Bytes (images, side, side, 3) to what the processor makes of them."""
    scaled = shown.float() / 255
    normed = (scaled - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    return normed.permute(0, 3, 1, 2).contiguous()


class Warmup:
    """The stage: one model, two sets of heads, two optimizers."""

    def __init__(self, model: QwenVLForConditionalGeneration, *, muon: float = MUON) -> None:
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.heads = nn.ModuleList(
            [CellHeads(model.config.vision_config.hidden_size), CellHeads(model.config.output_dim)]
        )
        named = [
            *self.tower.named_parameters(prefix="tower"),
            *self.projector.named_parameters(prefix="projector"),
        ]
        self.modules = nn.ModuleList([self.tower, self.projector, self.heads])
        matrices, rest = matrices_and_rest(named)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon),
            torch.optim.AdamW([*rest, *self.heads.parameters()], lr=_ADAM, weight_decay=0.0),
        ]

    def step(self, batch: dict[str, Tensor], *, measure: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and shares right on patches and on visual tokens."""
        patches = self.tower(pixel_values(batch["pixels"])).last_hidden_state
        tokens = self.projector(patches)
        assert patches.shape[1] == tokens.shape[1] == CELLS  # noqa: S101  the heads' premise
        first = cell_loss(self.heads[0](patches), batch, measure=False)
        second = cell_loss(self.heads[1](tokens), batch, measure=measure)
        return first.loss + second.loss, second.right


def load_vision(model: QwenVLForConditionalGeneration, path: Path) -> None:
    """Give a model the vision side that the warm-up left behind."""
    stage = Warmup(model)
    stage.modules.load_state_dict(torch.load(path, weights_only=True)["modules"])

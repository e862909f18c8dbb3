"""Last stage: both sides together, slowly, the cells' heads holding on to what is seen.

At full rate the answers' gradient destroys what the vision side has learned. At a fraction of it,
with the heads of the warm-up still asking what each cell shows, it mends what the answers lack.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from qwen_vl.modeling import QwenVLForConditionalGeneration
from scripts.tiny_language import Language
from scripts.tiny_warmup import Warmup

_VISION_SHARE, _LANGUAGE_SHARE = 0.2, 0.6  # of the rates that each side had alone
_CELLS = 0.05  # weight of the heads' loss, which is a sum over some forty


class Joint:
    """The stage: starts from what the other two left in the training folder."""

    def __init__(self, model: QwenVLForConditionalGeneration, folder: Path) -> None:
        self.vision = Warmup(model, share=_VISION_SHARE)
        self.language = Language(model, share=_LANGUAGE_SHARE)
        for stage, name in ((self.vision, "vision"), (self.language, "language")):
            state = torch.load(folder / f"{name}.pt", weights_only=True)
            stage.modules.load_state_dict(state["modules"])
        self.modules = nn.ModuleList([self.vision.modules, self.language.modules])
        self.optimizers = [*self.vision.optimizers, *self.language.optimizers]

    def step(self, batch: dict[str, Tensor], *, measure: bool) -> tuple[Tensor, dict[str, float]]:
        """The answers' loss and a share of the cells'; measured, what both got right."""
        cells, tokens, seen = self.vision.see(batch, measure=measure)
        answers, right = self.language.answer(tokens, batch, measure=measure)
        facts = {"answers": float(answers.detach()), **right}
        facts |= {f"cell {name}": share for name, share in seen.items()}
        return answers + _CELLS * cells, facts

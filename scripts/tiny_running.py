"""Run a stage of the training: rates, a log, checkpoints, and going on after a stop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model_store.files import write_text

_RISE = 40  # steps up to the full learning rate
_FALL = 0.6  # the last share of the training, over which the rate comes down: most is learned then
_LEAST = 0.02
_CLIP = 1.0


class Stage(Protocol):
    """What is trained: parameters in optimizers, and a loss for a batch."""

    @property
    def modules(self) -> nn.Module: ...
    @property
    def optimizers(self) -> list[torch.optim.Optimizer]: ...

    def step(
        self, batch: dict[str, Tensor], *, measure: bool
    ) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train: so many steps, or so many minutes if they are over first."""

    steps: int
    minutes: float
    save_every: int = 50
    measure_every: int = 10


def rate(step: int, progress: float) -> float:
    """The learning rate's factor: up, level, down."""
    return min((step + 1) / _RISE, 1.0) * min(1.0, max((1 - progress) / _FALL, _LEAST))


class Run:
    """A stage with its state on disk: `<name>.pt` and a line a measurement in `<name>.jsonl`."""

    def __init__(self, folder: Path, name: str, stage: Stage, plan: Plan) -> None:
        self.stage, self.plan = stage, plan
        self.state_path, self.log_path = folder / f"{name}.pt", folder / f"{name}.jsonl"
        self.step, self.seconds = 0, 0.0
        self._full = [[group["lr"] for group in o.param_groups] for o in stage.optimizers]
        if self.state_path.is_file():
            self._restore()

    @property
    def progress(self) -> float:
        return max(self.step / self.plan.steps, self.seconds / (60 * self.plan.minutes))

    def go(self, batches: Iterator[dict[str, Tensor]]) -> None:
        """Train to the end of the plan."""
        for batch in batches:
            started = time.monotonic()
            measure = self.step % self.plan.measure_every == 0
            facts = self._train(batch, measure=measure)
            self.seconds += time.monotonic() - started
            self.step += 1
            if measure:
                self._log(facts)
            if self.progress >= 1:
                break
            if self.step % self.plan.save_every == 0:
                self.save()
        self.save()

    def _train(self, batch: dict[str, Tensor], *, measure: bool) -> dict[str, float]:
        factor = rate(self.step, self.progress)
        for optimizer, full in zip(self.stage.optimizers, self._full, strict=True):
            for group, lr in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = lr * factor
            optimizer.zero_grad()
        loss, facts = self.stage.step(batch, measure=measure)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.stage.optimizers:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], _CLIP)
            optimizer.step()
        return {"loss": float(loss.detach()), **facts} if measure else {}

    def _log(self, facts: dict[str, float]) -> None:
        told = {name: round(value, 4) for name, value in facts.items()}
        line: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1), **told}
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write the state beside, then give it its name."""
        state = {
            "modules": self.stage.modules.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.stage.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        beside = self.state_path.with_suffix(".partial")
        torch.save(state, beside)
        beside.replace(self.state_path)

    def _restore(self) -> None:
        state = torch.load(self.state_path, weights_only=True)
        self.stage.modules.load_state_dict(state["modules"])
        for optimizer, kept in zip(self.stage.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step, self.seconds = state["step"], state["seconds"]
        # what was measured after the last checkpoint will be measured again
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(self.log_path, "".join(s for s in lines if json.loads(s)["step"] <= self.step))

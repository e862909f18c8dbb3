"""What stops a recipe.

PipelineError
├── RecipeError       the recipe itself is wrong (exit 2)
└── StepFailedError   a step ended with a status of its own, which becomes ours
"""

from __future__ import annotations

from model_store.errors import ToolkitError, UsageError


class PipelineError(ToolkitError):
    """A recipe could not be carried through."""


class RecipeError(UsageError):
    """The recipe is not one that we can run; nothing was started."""

    hint = "docs/formats.md describes recipes; recipes/demo.toml is a whole example."


class StepFailedError(PipelineError):
    """A step's command ended with a failure, which it has explained itself."""

    hint = "Mend the cause and run the same recipe again: finished steps are not repeated."

    def __init__(self, step: str, status: int, *, report: str | None = None) -> None:
        super().__init__(f"step {step!r} ended with exit status {status}")
        if report is not None:
            self.hint = f"What was measured: {report}. " + self.hint
        self.step, self.exit_code = step, status

"""Run a recipe: skip what is finished, run the rest as commands of their own, remember results.

Every step is a process, so a crash or a memory peak stays its own; it hands over a folder. The
local hub, where a recipe asks for one, lives in this process until the run ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_store.canonical import canonical_digest
from model_store.files import exclusive
from model_store.manifest import tool_version
from model_store.options import to_argv
from model_store.progress import Progress
from pipeline import state
from pipeline.bonds import dies_with_parent
from pipeline.errors import PipelineError, RecipeError, StepFailedError
from pipeline.recipe import REFERENCE, Recipe, RecipeStep
from pipeline.steps import default_result, load_options, options_class

if TYPE_CHECKING:
    from hub_tools.server.app import RunningHub


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did: the result path of every step, and the steps that really ran."""

    results: Mapping[str, str]
    ran: tuple[str, ...]
    closing: str


def run_recipe(
    recipe: Recipe,
    *,
    progress: Progress,
    again: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
) -> Outcome:
    """Carry a recipe through.

    Args:
        recipe: the steps.
        progress: told about the steps.
        again: steps to run even if finished.
        flags: given to every step's command, such as `--quiet`.

    Raises:
        StepFailedError: a step's command failed; its exit code becomes ours.
        BusyError: another process runs a recipe in the same folder.
    """
    _check_again(recipe, again)
    recipe.work.mkdir(parents=True, exist_ok=True)
    lock = recipe.work / ".ferry" / "lock"
    with exclusive(lock, wait=False, what=str(recipe.work)), ExitStack() as services:
        run = _Run(recipe, progress, services, flags)
        for number, step in enumerate(recipe.steps, 1):
            run.step(step, again=step.name in again, place=f"{number}/{len(recipe.steps)}")
        closing = run.fill(recipe.closing)
    return Outcome({name: str(path) for name, path in run.results.items()}, tuple(run.ran), closing)


def _check_again(recipe: Recipe, again: tuple[str, ...]) -> None:
    known = [step.name for step in recipe.steps]
    for name in again:
        if name not in known:
            raise RecipeError(f"--again {name}: no such step", hint=f"Steps: {', '.join(known)}.")


class _Run:
    """One run's results so far, and the environment that its commands see."""

    def __init__(
        self, recipe: Recipe, progress: Progress, services: ExitStack, flags: tuple[str, ...]
    ) -> None:
        self.results: dict[str, Path] = {}
        self.ran: list[str] = []
        self._recipe, self._progress, self._services = recipe, progress, services
        self._flags = flags
        self._environment = dict(os.environ)
        # another hub is another answer; one of our own is known by its folder, its port is chance
        self._hubs = [os.environ.get(name, "") for name in ("MODELSCOPE_ENDPOINT", "HF_ENDPOINT")]
        self._local: RunningHub | None = None
        if recipe.home is not None:
            self._environment["FERRY_HOME"] = str(recipe.home.absolute())

    def fill(self, text: str) -> str:
        """Put results, `{work}` and `{python}` into a text."""
        known = {name: str(path) for name, path in self.results.items()}
        known |= {"work": str(self._recipe.work), "python": sys.executable}
        return REFERENCE.sub(lambda found: known[found.group(1)], text)

    def step(self, step: RecipeStep, *, again: bool, place: str) -> None:
        """Run one step, or recognise it as finished."""
        if step.kind.leaves == "service":
            self._serve(step)
            return
        key = self._key(step)
        finished = None if again else state.load(self._recipe.work, step.name)
        if finished is not None and self._stands(step, finished, key):
            self.results[step.name] = Path(finished.path)
            self._progress.log(f"[{place}] {step.name}: already done")
            return
        self._progress.log(f"[{place}] {step.name}: {step.kind.uses}")
        started = time.monotonic()
        state.forget(self._recipe.work, step.name)
        result = self._run_step(step)
        left = state.left_digest(result, step.kind.leaves)
        if left is None:
            raise PipelineError(
                f"step {step.name!r} ended well but left no usable {result['path']}"
            )
        path = _from_here(Path(str(result["path"])))
        state.save(self._recipe.work, step.name, state.Finished(key, str(path), left, result))
        self.results[step.name] = path
        self.ran.append(step.name)
        self._progress.log(f"[{place}] {step.name}: done in {time.monotonic() - started:.1f} s")

    def _stands(self, step: RecipeStep, finished: state.Finished, key: str) -> bool:
        if finished.key != key:
            return False
        if state.left_digest(finished.result, step.kind.leaves) != finished.left:
            return False
        # a local hub may have been thrown away; a real one keeps what it acknowledged
        return self._local is None or all(
            self._local.hub.repositories.holds(str(done["repo_id"]), str(done["commit"]))
            for done in finished.result.get("published", ())
        )

    def _key(self, step: RecipeStep) -> str:
        reads = {
            name: state.input_digest(self.results[name], step.kind.reads)
            for name in step.references
            if self.results[name] != Path()
        }
        files = {
            text: state.input_digest(Path(text), step.kind.reads)
            for text in map(self.fill, _texts(step.table))
            if state.is_input(Path(text)) and text not in (sys.executable, self._result_of(step))
        }
        return canonical_digest(
            {
                "uses": step.kind.uses,
                "options": dict(step.table),
                "reads": reads,
                "files": files,
                "hubs": self._hubs if step.kind.module.startswith("hub_tools.") else None,
                "tool": tool_version(),
            }
        )

    def _result_of(self, step: RecipeStep) -> str:
        """Where a step's own options say that its result goes: that is no input."""
        named = {key.replace("-", "_"): value for key, value in step.table.items()}
        return self.fill(str(named.get(step.kind.into or "output", "")))

    def _options(self, step: RecipeStep) -> Any:
        filled = {key: _fill(value, self.fill) for key, value in step.table.items()}
        options = load_options(step.kind, filled)
        into = step.kind.into
        known = options_class(step.kind).__dataclass_fields__
        if into and into not in filled and into.replace("_", "-") not in filled:
            target = default_result(step.kind, self._recipe.work, step.name)
            options = replace(options, **{into: _like(known[into].type, target)})
        # a changed recipe makes a changed result: the run owns its folder, so it may replace it
        return replace(options, replace=True) if "replace" in known else options

    def _run_step(self, step: RecipeStep) -> dict[str, Any]:
        options = self._options(step)
        if step.kind.uses == "command":
            self._call(step, list(options.run), capture=False)
            return {"path": options.output}
        argv = [sys.executable, "-m", step.kind.module, "--json", *self._flags]
        output = self._call(step, argv + to_argv(options), capture=True)
        result = _last_json(output)
        if "path" not in result:
            raise PipelineError(f"step {step.name!r} printed no result")
        return result

    def _call(self, step: RecipeStep, argv: list[str], *, capture: bool) -> str:
        try:
            done = subprocess.run(  # noqa: S603  argv lists only, from the user's own recipe
                argv,
                env=self._environment,
                # our stdout is for the run's result: a program's chatter goes to stderr
                stdout=subprocess.PIPE if capture else 2,
                text=True,
                check=False,
                # a step that outlived us would hold its result's lock against the next run
                preexec_fn=dies_with_parent(),
            )
        except OSError as error:
            raise PipelineError(f"step {step.name!r} cannot be started: {error}") from error
        if done.returncode != 0:
            report = _last_json(done.stdout or "").get("report")
            raise StepFailedError(step.name, _status(done.returncode), report=report)
        return done.stdout or ""

    def _serve(self, step: RecipeStep) -> None:
        from hub_tools.server.app import running_hub

        options = self._options(step)
        hub = self._services.enter_context(running_hub(Path(options.root)))
        self._environment |= {"MODELSCOPE_ENDPOINT": hub.endpoint, "HF_ENDPOINT": hub.endpoint}
        # the user's own logins are for the real hubs, not for this one
        self._environment |= {"MODELSCOPE_API_TOKEN": "", "HF_TOKEN": ""}
        self._hubs, self._local = [options.root], hub
        self.results[step.name] = Path()
        self._progress.log(f"local hub at {hub.endpoint}, serving {options.root}")


def _from_here(path: Path) -> Path:
    # short to read, and still right when the whole tree is moved
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _last_json(output: str) -> dict[str, Any]:
    try:
        value = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return value if isinstance(value, dict) else {}


def _status(returncode: int) -> int:
    # a child that a signal killed: shells count those from 128
    return returncode if returncode > 0 else 128 - returncode


def _texts(table: Mapping[str, Any]) -> list[str]:
    values = [item for value in table.values() for item in _as_list(value)]
    return [value for value in values if isinstance(value, str) and "\n" not in value]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _fill(value: Any, fill: Any) -> Any:
    if isinstance(value, list):
        return [_fill(item, fill) for item in value]
    return fill(value) if isinstance(value, str) else value


def _like(annotation: Any, path: Path) -> Path | str:
    return path if "Path" in str(annotation) else str(path)

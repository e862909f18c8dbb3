"""Run a recipe: the steps of a whole journey, resumable, nothing done twice.

Examples:
  ferry run recipes/demo.toml
  ferry run recipes/demo.toml --dry-run
  ferry run recipes/demo.toml --again int4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args
from pipeline.options import RunOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, RunOptions)


def run(args: argparse.Namespace) -> int:
    from pipeline.recipe import read_recipe
    from pipeline.running import run_recipe

    options = from_args(RunOptions, args)
    recipe = read_recipe(options.recipe)
    if options.work is not None:
        home = recipe.home and options.work / recipe.home.relative_to(recipe.work)
        recipe = replace(recipe, work=options.work, home=home)
    if options.dry_run:
        plan = [{"step": step.name, "uses": step.kind.uses} for step in recipe.steps]
        text = "\n".join(f"{step['step']}: {step['uses']}" for step in plan)
        emit(args, {"plan": plan}, text)
        return 0
    flags = ("--progress", args.progress, *(["--quiet"] if args.quiet else []))
    outcome = run_recipe(recipe, progress=progress_for(args), again=options.again, flags=flags)
    text = outcome.closing.strip() or "\n".join(f"{k}: {v}" for k, v in outcome.results.items())
    emit(args, {"results": dict(outcome.results), "ran": list(outcome.ran)}, text)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

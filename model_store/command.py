"""What every command shares: flags, exit codes, one-line failures, results on stdout."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

from model_store.errors import ToolkitError
from model_store.progress import Progress, choose_progress


class ExitCode(IntEnum):
    """What a command's exit status means; docs/formats.md repeats the table."""

    DONE = 0
    GATE_FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    REFUSED = 4
    OUR_BUG = 70
    INTERRUPTED = 130


AddArguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command understands."""
    shared = parser.add_argument_group("output")
    shared.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    shared.add_argument("--quiet", action="store_true", help="no progress on stderr")
    shared.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "json"),
        default="auto",
        help="how to show progress on stderr (default: bars on a terminal, else plain lines)",
    )


def build_parser(
    add_arguments: AddArguments, *, prog: str | None, about: str | None
) -> argparse.ArgumentParser:
    """Make a command's parser; `about` is its module's docstring, examples included."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    add_shared_arguments(parser)
    return parser


def run_command(
    add_arguments: AddArguments,
    run: Run,
    argv: Sequence[str] | None,
    *,
    about: str | None,
    prog: str | None = None,
) -> int:
    """Parse `argv` (default: sys.argv) and run it; see `guarded` for failures."""
    parser = build_parser(add_arguments, prog=prog or _module_prog(), about=about)
    args = parser.parse_args(argv)
    return guarded(run, args)


def _module_prog() -> str | None:
    """`python -m room.command`, as the user typed it, where argparse would say `command.py`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec is not None else None


# what the disk or the file system refuses: the user can act on it, and we cannot
_REFUSALS = {
    errno.ENOSPC: "Free some space there, and run the same command again.",
    errno.EDQUOT: "Free some of your quota there, and run the same command again.",
    errno.EACCES: "Choose a place that you may read and write.",
    errno.EPERM: "Choose a place that you may read and write.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.ENOTDIR: "A part of this path is a file: choose another place.",
    errno.EEXIST: "A part of this path is a file: choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ELOOP: "A symbolic link there leads back to itself: choose another place.",
    errno.EIO: "The disk reported an error: check it before anything is written again.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
}


def guarded(run: Run, args: argparse.Namespace) -> int:
    """Run a parsed command; an expected failure becomes one line, a hint and its exit code."""
    try:
        status = run(args)
        sys.stdout.flush()
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader of stdout went away (`ferry ... | head`): not an error, and not our bug
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except Exception as error:  # noqa: BLE001  the last frame: a bug keeps its traceback
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            place = f": {error.filename}" if error.filename else ""
            print(f"error: {error.strerror}{place}", file=sys.stderr)
            print(f"hint: {_REFUSALS[error.errno]}", file=sys.stderr)
            return ExitCode.REFUSED
        traceback.print_exc()
        print("error: this is a bug in modelferry; please report the lines above", file=sys.stderr)
        return ExitCode.OUR_BUG
    return status


def progress_for(args: argparse.Namespace) -> Progress:
    """Make the progress display that the shared flags ask for."""
    return choose_progress(args.progress, quiet=args.quiet, stream=sys.stderr)


def emit(args: argparse.Namespace, result: Mapping[str, object], text: str) -> None:
    """Print a command's result on stdout: `text` for people, `result` with --json."""
    if args.json:
        print(json.dumps(result, ensure_ascii=False, sort_keys=True))
    else:
        print(text)

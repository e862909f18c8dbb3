"""Serve a folder of checkpoints as a hub that the official clients of both hubs can use.

ROOT/owner/name is a repository's default branch, ROOT/owner/name@v1.0.0 its tag v1.0.0. The folders
are only read; what is uploaded goes to ROOT/.hub. The endpoint is printed on stdout.

Examples:
  python -m hub_tools.serve ~/models
  HF_ENDPOINT=http://127.0.0.1:8710 MODELSCOPE_ENDPOINT=http://127.0.0.1:8710 …
  FERRY_SERVE_TOKEN=… python -m hub_tools.serve ~/models --port 8710 --private me/secret-model
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Never

from hub_tools.server.options import ServeOptions, serve_token
from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.errors import UsageError
from model_store.options import add_options, from_args

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, ServeOptions)


def run(args: argparse.Namespace) -> int:
    from hub_tools.server.app import HubOptions, open_hub

    options = from_args(ServeOptions, args)
    if not options.root.is_dir():
        raise UsageError(f"{options.root} is no folder", hint="Make it, or name another ROOT.")
    hub_options = HubOptions(
        token=serve_token(options),
        read_only=options.read_only,
        private=options.private,
        host=options.host,
        port=options.port,
    )
    # a supervisor's stop is as good an end as Ctrl-C
    before = signal.signal(signal.SIGTERM, _stop)
    progress = progress_for(args)
    try:
        with open_hub(options.root, hub_options, progress=progress) as (server, hub):
            count = len(list(hub.repositories))
            progress.log(f"serving {count} repositories; stop with Ctrl-C")
            if hub_options.token is None and options.host not in _LOOPBACK:
                progress.log("warning: no token is set, so everybody who gets here may write")
            emit(args, {"endpoint": server.endpoint, "repositories": count}, server.endpoint)
            sys.stdout.flush()
            server.serve_forever()
    except KeyboardInterrupt:
        progress.log("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    return ExitCode.DONE


def _stop(signum: int, frame: object) -> Never:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

"""Fetch one pinned revision of a model repository, every byte verified.

A name without a hub is looked for on ModelScope, then on Hugging Face. Files go into the store
(FERRY_HOME, by default ~/.cache/modelferry), and the snapshot's folder is printed; --local-dir
makes a plain copy instead. A file gets its name only when its digest is right. Whatever stops a
download, the same command goes on with the bytes that are missing; a complete one costs a request.

Private or gated: set MODELSCOPE_API_TOKEN or HF_TOKEN, or log in with the hub's own client
(`modelscope login`, `hf auth login`). A token goes to its hub only, never to where it redirects.
Network: MODELSCOPE_ENDPOINT and HF_ENDPOINT name other addresses of the hubs; HTTPS_PROXY, NO_PROXY
and REQUESTS_CA_BUNDLE are honoured.

Examples:
  # what would come, how large it is, and how much of it is here already
  python -m hub_tools.download qwen/Qwen-VL-Chat --dry-run
  # into the store; prints the folder
  python -m hub_tools.download qwen/Qwen-VL-Chat
  # a tag of one hub, as plain files
  python -m hub_tools.download huggingface:Qwen/Qwen-VL-Chat@v1.0.0 --local-dir ./Qwen-VL-Chat
  # equal files from both hubs at once; no more than 20 MB per second in all
  python -m hub_tools.download qwen/Qwen-VL-Chat --also huggingface:Qwen/Qwen-VL-Chat
  python -m hub_tools.download qwen/Qwen-VL-Chat --limit-rate 20MB
  # configuration and tokenizer only
  python -m hub_tools.download qwen/Qwen-VL-Chat --include '*.json' --include '*.tiktoken'
  # without the network; hash what is here and mend it; for a program that watches
  python -m hub_tools.download qwen/Qwen-VL-Chat --offline
  python -m hub_tools.download qwen/Qwen-VL-Chat --verify
  python -m hub_tools.download qwen/Qwen-VL-Chat --json --progress json

Exit status: 0 done, 2 usage, 4 refused or failed (one line and a hint), 130 interrupted: what came
is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub_tools.download_options import DownloadOptions
from model_store.command import ExitCode, emit, progress_for, run_command
from model_store.options import add_options, from_args
from model_store.progress import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, DownloadOptions)


def run(args: argparse.Namespace) -> int:
    # urllib3 loads here, not for --help
    from hub_tools.hubs import Surroundings
    from hub_tools.snapshots import download_snapshot
    from hub_tools.transfer_options import TransferOptions

    options = from_args(DownloadOptions, args)
    around = Surroundings(
        transfer=TransferOptions(
            connections=options.connections, limit_rate=options.bytes_per_second
        ),
        progress=progress_for(args),
    )
    if options.dry_run:
        return _say_plan(args, options, around)
    folder = download_snapshot(
        options.name,
        revision=options.revision,
        target=options.local_dir,
        offline=options.offline,
        include=options.include,
        exclude=options.exclude,
        also=options.also,
        verify=options.verify,
        around=around,
    )
    for report in around.reports:
        for served in report.banned:
            around.progress.log(f"{report.label} served wrong bytes of {served}")
    sources = [report.json() for report in around.reports]
    emit(args, _result(folder) | {"sources": sources}, str(folder))
    return ExitCode.DONE


def _say_plan(args: argparse.Namespace, options: DownloadOptions, around: Any) -> int:
    from hub_tools.snapshots import plan_download

    plan = plan_download(
        options.name,
        revision=options.revision,
        include=options.include,
        exclude=options.exclude,
        target=options.local_dir,
        around=around,
    )
    lines = [f"{human_bytes(file.size):>10}  {file.path}" for file in plan.missing]
    summary = (
        f"{plan.pin.hub}:{plan.pin.repo_id}@{plan.pin.commit}: {len(plan.missing)} of"
        f" {len(plan.files)} files to fetch, {human_bytes(plan.missing_bytes)} of"
        f" {human_bytes(plan.total_bytes)}"
    )
    if plan.kept_bytes:
        summary += f"; an earlier run left {human_bytes(plan.kept_bytes)}"
    result = {
        "hub": plan.pin.hub,
        "repo_id": plan.pin.repo_id,
        "commit": plan.pin.commit,
        "files": [file.path for file in plan.files],
        "missing": [file.path for file in plan.missing],
        "total_bytes": plan.total_bytes,
        "missing_bytes": plan.missing_bytes,
        "kept_bytes": plan.kept_bytes,
    }
    emit(args, result, "\n".join([*lines, summary]))
    return ExitCode.DONE


def _result(folder: Path) -> dict[str, object]:
    from model_store.manifest import read_manifest

    manifest = read_manifest(folder)
    source = manifest.source
    return {
        "path": str(folder),
        "hub": source.hub if source else None,
        "repo_id": source.repo_id if source else None,
        "revision": source.revision if source else None,
        "commit": source.commit if source else None,
        "files": len(manifest.files),
        "bytes": sum(entry.size for entry in manifest.files),
        "content_digest": manifest.content_digest,
    }


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

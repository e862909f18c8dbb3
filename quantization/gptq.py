"""Quantize a decoder to GPTQ integers: Qwen-VL with pictures, or any text decoder of transformers.

Examples:
    python -m quantization.gptq
    python -m quantization.gptq Qwen-VL-Chat-Native --into Qwen-VL-Chat-Int4
    python -m quantization.gptq Qwen-VL-Chat --calibration talks.jsonl --images photos --samples 64
    python -m quantization.gptq Qwen-VL-Chat --layout original --format gptq
    python -m quantization.gptq Qwen2-7B --preset best --calibration texts.jsonl --samples 128
    python -m quantization.gptq Llama-3-8B --include lm_head --modules '*.down_proj:bits=8'
    python -m quantization.gptq Qwen-VL-Chat --method rtn --into baseline

Reads a full-precision snapshot, one layer at a time, and writes a new one, with the error of every
linear in records/quantization.json and as a picture beside it. A killed run goes on where it was
when the same command is given again. Prints the new folder; when it is there already, nothing is
computed. What the presets cost: docs/quantization.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from model_store.command import emit, progress_for, run_command
from model_store.options import add_options, from_args
from quantization.options import GptqConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_options(parser, GptqConfig)


def run(args: argparse.Namespace) -> int:
    """Quantize and print the folder."""
    config = from_args(GptqConfig, args)
    from hub_tools.snapshots import resolve_snapshot
    from hub_tools.targets import result_folder
    from quantization.step import quantize_snapshot

    progress = progress_for(args)
    folder = resolve_snapshot(config.model, progress=progress)
    suffix = f"{config.method.upper()}-Int{config.bits}"
    target = result_folder(folder, config.into, suffix=suffix)
    result = quantize_snapshot(folder, target, config, progress=progress)
    if not result.fresh:
        progress.log(f"already done: {result.folder}")
    emit(args, result.json(), str(result.folder))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    return run_command(add_arguments, run, argv, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

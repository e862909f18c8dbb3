"""Write a tiny checkpoint in Qwen-VL-Chat's layout of 2023, for demos and tests.

The same seed and ranks give the same bytes. Nothing in it comes from the published model.

Examples:
  python scripts/make_tiny_checkpoint.py build/tiny
  python scripts/make_tiny_checkpoint.py build/tiny --seed 7 --ranks qwen.tiktoken
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.command import emit, run_command
from model_store.files import copy_file, exclusive, write_bytes, write_text
from model_store.progress import human_bytes
from model_store.snapshot_folder import check_target

_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_SEED = 2023
_VOCABULARY_MULTIPLE = 128
_README = """# A tiny checkpoint in Qwen-VL-Chat's layout of 2023
Untrained, made by `scripts/make_tiny_checkpoint.py` of modelferry; it talks about coloured shapes.
"""


def model_config(n_ranks: int) -> dict[str, Any]:
    """The config.json: the keys of the published one, at a thousandth of its size."""
    from qwen_vl.ranks import IMG_START, SPECIAL_TOKENS, special_ids

    length = n_ranks + len(SPECIAL_TOKENS)
    hidden = 256
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "bf16": True,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 1024,
        "kv_channels": 64,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 2048,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": False,
        "use_logn_attn": True,
        "visual": {
            "heads": 4,
            "image_size": 112,
            "image_start_id": special_ids(n_ranks)[IMG_START],
            "layers": 2,
            "mlp_ratio": 4.9231,
            "output_dim": hidden,
            "patch_size": 14,
            "width": 64,
        },
        "vocab_size": -(-length // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
    }


def generation_config(n_ranks: int) -> dict[str, Any]:
    """The generation_config.json of the published Chat, ids counted from the ranks."""
    from qwen_vl.ranks import END_OF_TEXT, special_ids

    stop = special_ids(n_ranks)[END_OF_TEXT]
    return {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": stop,
        "max_new_tokens": 512,
        "max_window_size": 6144,
        "pad_token_id": stop,
        "top_k": 0,
        "top_p": 0.3,
        "transformers_version": "4.31.0",
    }


TOKENIZER_CONFIG = {
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
}


def make_checkpoint(folder: Path, *, seed: int, rank_file: bytes) -> int:
    """Write the checkpoint beside `folder`, then give it its name; returns the weights' bytes.

    Raises:
        TargetExistsError: `folder` exists and is not empty.
        RankFileError: `rank_file` is no tiktoken rank file.
    """
    folder = folder.absolute()
    check_target(folder, replace=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}.partial")
    lock = folder.with_name(f".{folder.name}.lock")
    with exclusive(lock, wait=False, what=str(folder)):
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            total = _fill(building, seed, rank_file)
            if folder.exists():
                folder.rmdir()
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)
    return total


def _fill(folder: Path, seed: int, rank_file: bytes) -> int:
    from qwen_vl.ranks import build_encoding, parse_ranks

    ranks = parse_ranks(rank_file, "the rank file")
    config = model_config(len(ranks))
    write_bytes(folder / "qwen.tiktoken", rank_file)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config(len(ranks)))
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_text(folder / "README.md", _README)
    copy_file(_ROOT / "LICENSE", folder / "LICENSE")
    return _write_weights(folder, config, build_encoding(ranks), seed)


def _write_weights(folder: Path, config: Mapping[str, Any], encoding: Any, seed: int) -> int:
    from model_store.shard_plan import PlannedTensor
    from model_store.torch_writer import TorchShardWriter
    from scripts.tiny_weights import shapes, tensors

    plan = [PlannedTensor(name, "BF16", shape) for name, shape in shapes(config).items()]
    total = sum(tensor.nbytes for tensor in plan)
    # over half of it, but not all: two or three shards, as the published model has ten
    with TorchShardWriter(folder, plan, max_shard_bytes=total * 3 // 5) as writer:
        for name, tensor in tensors(config, encoding, seed=seed):
            writer.add(name, tensor)
        writer.finish()
    return total


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("folder", type=Path, help="the folder to write; absent or empty")
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"of the weights (default: {DEFAULT_SEED})"
    )
    parser.add_argument(
        "--ranks", type=Path, help="a tiktoken rank file to use instead of our own small one"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.ranks is None:
        from scripts.train_ranks import trained_rank_file

        rank_file = trained_rank_file()
    else:
        from qwen_vl.ranks import read_rank_file

        rank_file = read_rank_file(args.ranks)
    total = make_checkpoint(args.folder, seed=args.seed, rank_file=rank_file)
    emit(
        args,
        {"path": str(args.folder), "seed": args.seed, "tensor_bytes": total},
        f"{args.folder} ({human_bytes(total)} of weights)",
    )
    return 0


def main() -> int:
    """Parse sys.argv and run."""
    return run_command(add_arguments, run, None, about=__doc__)


if __name__ == "__main__":
    sys.exit(main())

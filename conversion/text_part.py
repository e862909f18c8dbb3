"""The language part of a Qwen-VL as a stock Qwen2: the same tensors under Qwen2's names.

Qwen-VL stretches its positions beyond `seq_length` tokens (dynamic NTK, log-n attention); a stock
Qwen2 has neither, so the copy is exact up to there, and its config promises no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conversion.errors import ConversionError, MissingFileError, NotQwenVLError
from conversion.layouts import Layout, check_complete, layout_of, read_json_file, vision_heads
from conversion.opened import OpenedSnapshot
from conversion.options import TextOnlyOptions, parse_size
from conversion.qwen_vl_files import CONFIG, RANKS, SideFiles, json_bytes
from conversion.rewriting import Result, Rewrite
from conversion.running import run_draft
from conversion.steps import rewrite_of, step_of
from model_store.change_notice import is_legal
from model_store.paths import inside
from model_store.progress import Progress
from model_store.tensor_sources import TensorSource, is_zero
from model_store.weight_rules import Move, Op, TensorSpec, planned
from qwen_vl.config_map import to_native_config, to_original_config
from qwen_vl.ranks import END_OF_TEXT, IM_END, read_ranks, special_ids
from qwen_vl.side_files import TOKENIZER_CONFIG
from qwen_vl.tokenizer_json import TOKENIZER_JSON, tokenizer_json
from qwen_vl.weight_map import WEIGHT_MAP, native_plan, original_plan

GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
_PREFIX, _HEAD = "model.language_model.", "lm_head.weight"
# Qwen2's linears without a bias
_NO_BIAS = ("o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")
# settings that mean the same to transformers' generate()
_GENERATION = (
    "do_sample", "max_new_tokens", "repetition_penalty", "temperature", "top_k", "top_p",
)  # fmt: skip
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{%- if loop.first and message['role'] != 'system' -%}\n"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}\n"
    "{%- if not loop.last or add_generation_prompt -%}\n"
    "{{- '\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


def text_only(
    folder: Path, target: Path, options: TextOnlyOptions, *, progress: Progress | None = None
) -> Result:
    """Write the language part of a Qwen-VL, of either layout, as a stock Qwen2.

    Raises:
        NotQwenVLError: another architecture.
        ConversionError: it has what a stock Qwen2 lacks.
        WeightMapError, IncompleteError: tensors that do not fit the map or the config.
        TargetExistsError: `target` holds something else.
    """
    return run_draft(folder, target, draft_text_only, options, progress=progress)


def draft_text_only(opened: OpenedSnapshot, options: TextOnlyOptions) -> Rewrite:
    """Plan the language part; see `text_only`."""
    size = parse_size(options.max_shard_size)
    config = read_json_file(opened.folder / CONFIG)
    if layout_of(config) is Layout.OTHER:
        raise NotQwenVLError(f"config.json has model_type {str(config.get('model_type'))[:40]!r}")
    if opened.manifest.entry(RANKS) is None:
        raise MissingFileError(RANKS)
    ranks = read_ranks(inside(opened.folder, RANKS))
    native, moves = _native(opened, config, len(ranks))
    moves = _without_zero_biases(moves, opened.checkpoint.source)
    written = _files(opened, native, ranks)
    exact = int(native["text_config"]["seq_length"])
    facts = {"weight_map": WEIGHT_MAP.digest, "exact_up_to_tokens": exact}
    step = step_of("text_only", options, opened, moves, facts)
    files = SideFiles(written, tuple(path for path in opened.companions() if is_legal(path)))
    summary = (
        "Changed by modelferry: the language part alone, its tensors renamed to those of a stock "
        f"Qwen2; every value is unchanged, and the model is exact up to {exact} tokens."
    )
    notes = (
        f"Qwen-VL's own positions beyond {exact} tokens (dynamic NTK, log-n attention) have no "
        "place in a stock Qwen2.",
        "The vision tower and the projector were left out: the model cannot see.",
    )
    return replace(rewrite_of(step, moves, "safetensors", size, files, summary), notes=notes)


def _native(
    opened: OpenedSnapshot, config: Mapping[str, Any], n_ranks: int
) -> tuple[Mapping[str, Any], list[Move]]:
    """The native config, and the moves to Qwen2's names."""
    infos, heads = opened.infos(), vision_heads(config)
    if layout_of(config) is Layout.ORIGINAL:
        check_complete(infos, config)
        native: Mapping[str, Any] = to_native_config(config, n_ranks=n_ranks)
        moves = native_plan(infos, vision_heads=heads)
    else:
        native = config
        originals = planned(original_plan(infos, vision_heads=heads))
        check_complete(originals, to_original_config(config))
        moves = [
            Move(Op.RENAME, (name,), (TensorSpec(name, info.dtype, info.shape),), heads)
            for name, info in infos.items()
        ]
    _check_stock(native["text_config"])
    return native, [_renamed(move) for move in moves if _is_text(move.targets[0].name)]


def _is_text(name: str) -> bool:
    return name.startswith(_PREFIX) or name == _HEAD


def _renamed(move: Move) -> Move:
    targets = tuple(
        replace(spec, name="model." + spec.name.removeprefix(_PREFIX))
        if spec.name != _HEAD
        else spec
        for spec in move.targets
    )
    return replace(move, targets=targets)


def _check_stock(text: Mapping[str, Any]) -> None:
    if text.get("attention_out_bias") or text.get("mlp_bias"):
        raise ConversionError("this model has biases where a stock Qwen2 has none (no_bias false)")
    if text["rope_parameters"].get("partial_rotary_factor", 1.0) != 1.0:
        raise ConversionError("this model turns a part of each head only; a stock Qwen2 turns all")


def _without_zero_biases(
    moves: Sequence[Move], source: Callable[[str], TensorSource]
) -> list[Move]:
    """Leave out the zeros that GPTQ tools add where Qwen2 has no bias."""
    kept = []
    for move in moves:
        if not move.targets[0].name.endswith(_NO_BIAS):
            kept.append(move)
        elif not all(is_zero(tensor) for tensor in move.rearrange(source)):
            raise ConversionError(
                f"{move.sources[0]} is not zero, and a stock Qwen2 has no bias there"
            )
    return kept


def _files(
    opened: OpenedSnapshot, native: Mapping[str, Any], ranks: Mapping[bytes, int]
) -> dict[str, bytes]:
    generation = (
        read_json_file(opened.folder / GENERATION)
        if opened.manifest.entry(GENERATION) is not None
        else {}
    )
    chats = generation.get("chat_format") == "chatml"
    ids = special_ids(len(ranks))
    ends = [ids[IM_END], ids[END_OF_TEXT]] if chats else [ids[END_OF_TEXT]]
    written = {
        CONFIG: json_bytes(_config(native, ids[END_OF_TEXT])),
        GENERATION: json_bytes(
            {
                **{key: generation[key] for key in _GENERATION if key in generation},
                "eos_token_id": ends if chats else ends[0],
                "pad_token_id": ids[END_OF_TEXT],
            }
        ),
        TOKENIZER_JSON: tokenizer_json(ranks),
        TOKENIZER_CONFIG: json_bytes(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "eos_token": IM_END if chats else END_OF_TEXT,
                "pad_token": END_OF_TEXT,
                "model_max_length": native["text_config"]["seq_length"],
            }
        ),
    }
    if chats:
        written[TEMPLATE] = _CHAT_TEMPLATE.encode()
    return written


def _config(native: Mapping[str, Any], end: int) -> dict[str, Any]:
    text = native["text_config"]
    theta = text["rope_parameters"]["rope_theta"]
    quantization = native.get("quantization_config")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": native.get("dtype"),  # every reader knows this key, old and new
        "vocab_size": text["vocab_size"],
        "hidden_size": text["hidden_size"],
        "intermediate_size": text["intermediate_size"],
        "num_hidden_layers": text["num_hidden_layers"],
        "num_attention_heads": text["num_attention_heads"],
        "num_key_value_heads": text["num_key_value_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": text["seq_length"],
        "initializer_range": text.get("initializer_range", 0.02),
        "rms_norm_eps": text["rms_norm_eps"],
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "use_cache": True,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "eos_token_id": end,
        **({} if quantization is None else {"quantization_config": quantization}),
    }
